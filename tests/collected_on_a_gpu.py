"""A plugin for pytest: the machine says that it has a GPU on which every backend runs, and nothing is run; prints, as
JSON, the tests that are left out, that would run, and that would be skipped."""

import json

import torch

from densenet_fast import backends

torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: (9, 0)
backends.why_unavailable = lambda *_: None
left_out = []


def pytest_deselected(items) -> None:
    left_out.extend(items)


def pytest_collection_finish(session) -> None:
    skipped = [item for item in session.items if any(map(_applies, item.iter_markers()))]
    groups = {"left out": left_out, "run": session.items, "skipped": skipped}
    print(json.dumps({name: [item.nodeid for item in items] for name, items in groups.items()}))


def _applies(mark) -> bool:
    return mark.name == "skip" or (mark.name == "skipif" and bool(mark.args[0]))
