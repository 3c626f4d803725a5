"""The peers: every way to run a DenseNet that a user would consider, ours by backend among them, and two other nets."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn

from densenet_fast import backends

from .runtimes import RUNTIMES, Exported
from .subjects import TORCHVISION, Subject

BASELINE = "torchvision"  # every ratio is to it: eager, channels_last
FREEZING = {"options": {"freezing": True}}


class Variant(NamedTuple):
    """One way to run a subject.

    family: "stock", "ours", or the name of another net, which is compared in images per second alone.
    build: the module, on the CPU, in float32 and with any weights.
    phases: "training" and "inference", or the one in which it differs from another variant.
    budget: torch.compile's activation_memory_budget.
    """

    name: str
    label: str
    family: str
    build: Callable[[Subject], nn.Module]
    layout: torch.memory_format = torch.channels_last
    phases: Sequence[str] = ("training", "inference")
    compile: dict[str, Any] | None = None
    budget: float = 1.0
    graph: bool = False
    backend: str | None = None

    def in_graph(self, device: torch.device) -> bool:
        """Whether it runs from CUDA graphs, whose memory is not among the allocator's live bytes."""
        mode = (self.compile or {}).get("mode")
        return self.graph or (device.type == "cuda" and mode in ("reduce-overhead", "max-autotune"))

    def why_not(self, subject: Subject, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot be measured here, as a clause; None if it can."""
        if self.family not in ("stock", "ours") and not (subject.is_net and subject.name in TORCHVISION):
            return "another net is compared as a whole, on large images"
        if self.name in ("timm", "vovnet39") and find_spec("timm") is None:
            return "timm is not installed"
        if self.name == "timm" and not (subject.is_net and subject.name in TORCHVISION):
            return "timm has no DenseNet for small images and no block of its own"
        if self.name in RUNTIMES and find_spec(self.name) is None:
            return f"{self.name} is not installed"
        if self.name in RUNTIMES and (device.type != "cpu" or dtype != torch.float32):
            return "it is set up for the CPU and float32"
        if self.compile == FREEZING and device.type != "cpu":
            return "the graphs that PyTorch freezes are for inference on a CPU"
        if device.type != "cuda" and (self.graph or self.compile == {"mode": "reduce-overhead"}):
            return "CUDA graphs need a GPU"
        return self.backend and backends.why_unavailable(self.backend, device, dtype)


def _stock(subject: Subject) -> nn.Module:
    return subject.stock(False)


def _checkpointed(subject: Subject) -> nn.Module:
    return subject.stock(True)


def _runtimes() -> list[Variant]:
    labels = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    return [
        Variant(
            name,
            labels[name],
            "stock",
            lambda subject, prepare=prepare: Exported(subject.stock(False), prepare),
            layout=torch.contiguous_format,
            phases=("inference",),
        )
        for name, prepare in RUNTIMES.items()
    ]


def _timm(subject: Subject) -> nn.Module:
    import timm  # takes seconds, and a GPU machine may lack it

    return timm.create_model(subject.name)


def _resnet50(subject: Subject) -> nn.Module:
    return torchvision.models.resnet50()


def _vovnet39(subject: Subject) -> nn.Module:
    import timm

    return timm.create_model("ese_vovnet39b")


WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # to run a net of ours: name, label, fields of a variant
    ("{}", "{}", {}),
    ("{}-graph", "{}, CUDA graph", {"graph": True}),
    ("compile-{}", "{}, torch.compile", {"compile": {}}),
    ("compile-reduce-overhead-{}", "{}, torch.compile reduce-overhead", {"compile": {"mode": "reduce-overhead"}}),
)


def _ours() -> list[Variant]:
    found = []
    for backend, efficient, (name, label, fields) in product(backends.PREFERENCE, (False, True), WAYS):
        if efficient and "compile" in fields:
            continue  # in a graph it recomputes as without one
        tags = [backend, "efficient"] if efficient else [backend]
        found.append(
            Variant(
                name.format("-".join(tags)),
                f"densenet_fast {label.format(', '.join(tags))}",
                "ours",
                lambda subject, backend=backend, efficient=efficient: subject.ours(backend, efficient),
                phases=("training",) if efficient else ("training", "inference"),
                backend=backend,
                **fields,
            )
        )
    return found


VARIANTS = (
    Variant(BASELINE, "torchvision", "stock", _stock),
    Variant("torchvision-nchw", "torchvision, NCHW", "stock", _stock, layout=torch.contiguous_format),
    Variant("torchvision-efficient", "torchvision, memory_efficient", "stock", _checkpointed, phases=("training",)),
    Variant("torchvision-graph", "torchvision, CUDA graph", "stock", _stock, graph=True),
    Variant("compile", "torchvision, torch.compile", "stock", _stock, compile={}),
    Variant(
        "compile-reduce-overhead",
        "torchvision, torch.compile reduce-overhead",
        "stock",
        _stock,
        compile={"mode": "reduce-overhead"},
    ),
    Variant(
        "compile-budget",
        "torchvision, torch.compile activation_memory_budget 0.5",
        "stock",
        _stock,
        phases=("training",),
        compile={},
        budget=0.5,
    ),
    Variant(
        "compile-max-autotune",
        "torchvision, torch.compile max-autotune",
        "stock",
        _stock,
        compile={"mode": "max-autotune"},
    ),
    Variant(
        "compile-freezing",
        "torchvision, torch.compile freezing",
        "stock",
        _stock,
        phases=("inference",),
        compile=FREEZING,
    ),
    *_runtimes(),
    Variant("timm", "timm", "stock", _timm),
    *_ours(),
    Variant("resnet50", "ResNet-50 (torchvision)", "resnet50", _resnet50),
    Variant("vovnet39", "VoVNet-39 (timm ese_vovnet39b)", "vovnet39", _vovnet39),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


def named(patterns: str) -> list[Variant]:
    """The variants that a comma-separated list of names and patterns asks for, and always the baseline; "all" is all,
    "uncompiled" all that start at once.

    Raises:
        ValueError: a pattern that no variant matches.
    """
    chosen = {BASELINE}
    for pattern in patterns.split(","):
        if pattern == "uncompiled":
            matching = [v.name for v in VARIANTS if v.compile is None]
        else:
            matching = [v.name for v in VARIANTS if pattern == "all" or fnmatch(v.name, pattern)]
        if not matching:
            raise ValueError(f"--peers: got {pattern!r}, expected all, uncompiled or some of {', '.join(BY_NAME)}")
        chosen.update(matching)
    return [variant for variant in VARIANTS if variant.name in chosen]
