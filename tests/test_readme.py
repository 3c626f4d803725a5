"""What README.md and docs/ tell a reader to type works: Python blocks run, page by page; commands and files exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchvision

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WITH_BLOCKS = [page for page in PAGES if BLOCK.search(page.read_text())]


def name(page):
    return str(page.relative_to(ROOT))


def test_the_first_pages_have_blocks():
    assert {"README.md", "docs/getting-started.md"} <= {name(page) for page in WITH_BLOCKS}


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    """Only what the network or the reader would bring is replaced: torchvision's weights, and a checkpoint."""
    text = page.read_text()
    monkeypatch.chdir(tmp_path)
    net = torchvision.models.densenet121
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: net().state_dict())
    if "checkpoint.pth" in text:
        torch.save(torch.nn.DataParallel(net(num_classes=14)).state_dict(), "checkpoint.pth")
    known = {}
    for block in BLOCK.finditer(text):
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), known)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_files_exist(page):
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for module in re.findall(r"python -m (?!pip\b)([\w.]+)", text):
        assert find_spec(module) is not None, module
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
