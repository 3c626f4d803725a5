"""What somebody is told whose model runs without compiled kernels, and who is not told."""

import subprocess
import sys
import warnings

import pytest
import torch

import densenet_fast
from densenet_fast import DenseNet, backends, info, installation

from . import LIBRARY, ROOT, copy_sources, mending
from .table import ROWS, Outcome, run

CPU = torch.device("cpu")
BY_NAME = {row.name: row for row in ROWS}
RECORD = {
    "built": None,
    "left_out": {"CPU": {"why": "c++ failed on csrc/block.cpp", "first": "see to c++", "said": ["too old", "really"]}},
}


@pytest.fixture
def hollow(monkeypatch):
    """A package whose library was left out."""
    monkeypatch.delenv("DENSENET_FAST_QUIET", raising=False)
    monkeypatch.setattr(installation, "record", lambda: RECORD)
    monkeypatch.setattr(
        backends, "why_no_library", lambda: f"the compiled library was not built: {installation.why_left_out('CPU')}"
    )
    monkeypatch.setattr(backends, "_told", set())
    monkeypatch.setattr(sys, "platform", "linux")


def step(dtype=torch.float32, **options):
    DenseNet(4, (2, 2), **options).to(dtype)(torch.randn(2, 3, 16, 16, dtype=dtype)).sum().backward()


def told(**options) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        step(**options)
        step(**options)
    return [text for w in seen if "densenet_fast" in (text := str(w.message))]  # PyTorch has its own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_warning_with_the_reason_and_the_command(hollow, dtype):
    (text,) = told(dtype=dtype)
    assert "runs on cpu without compiled kernels" in text
    assert "c++ failed on csrc/block.cpp. To have them, see to c++, then type: DENSENET_FAST_BUILD_CPU=1 " in text
    assert f"{sys.executable} -m pip install" in text


def test_the_table_has_what_stands_before_the_command(hollow):
    (text,) = told()
    assert Outcome("", text, mending(text), "").reason() == "c++ failed on csrc/block.cpp. To have them, see to c++"
    error = "densenet_fast: there is no PyTorch; type: pip install torch  (or do without)"
    assert Outcome("", error, mending(error), "").reason() == "there is no PyTorch"


def test_a_damaged_record_is_none(monkeypatch, tmp_path):
    (tmp_path / "_build.json").write_text("{")
    monkeypatch.setattr(densenet_fast, "__path__", [str(tmp_path)])
    assert installation.record.__wrapped__() is None


def test_the_warning_points_at_the_caller(hollow):
    model = DenseNet(4, (2,))
    with pytest.warns(UserWarning, match="without compiled kernels") as seen:
        model(torch.randn(2, 3, 16, 16))
    assert seen[0].filename == __file__


def test_info_says_the_same(hollow):
    text = "\n".join(info.lines())
    assert f"imported from {installation.PACKAGE}" in text
    assert "c++ failed on csrc/block.cpp\n    too old\n    really\n" in text
    assert "cpu: runs without compiled kernels; to have them, see to c++, then type: DENSENET_FAST_BUILD_CPU=1 " in text


@pytest.mark.parametrize(
    "options",
    [{"backend": "eager"}, {"backend": "plain"}, {"dtype": torch.float64}],
    ids=["eager by name", "plain by name", "float64"],
)
def test_who_asked_for_it_or_cannot_have_better_is_not_told(hollow, options):
    assert told(**options) == []


def test_quiet(hollow, monkeypatch):
    monkeypatch.setenv("DENSENET_FAST_QUIET", "1")
    assert told() == []


def test_where_there_are_no_kernels_to_be_had_nobody_is_told(hollow, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert told() == []


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_on_a_gpu_without_triton(hollow, monkeypatch, capability):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert backends.why_hollow(gpu) is None or capability < (8, 0)  # Triton needs nothing built
    monkeypatch.setattr(backends, "_why_not_triton", lambda *_: "triton is not installed")
    found = backends.why_hollow(gpu, torch.bfloat16)
    if capability < (8, 0):
        assert found is None
    else:
        reason, mend = found
        assert reason.startswith("triton is not installed, and the compiled library was not built")
        assert f"install Triton ({sys.executable} -m pip install triton), or " in mend
        assert "DENSENET_FAST_BUILD_CUDA=1" in mend


def python(folder, code, **environment):
    """A process that imports the package from a folder, and has nothing else of this one's environment."""
    given = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=given | environment, capture_output=True, text=True
    )


def test_a_library_that_does_not_load_is_told_with_the_loader_s_reason(tmp_path):
    copy_sources(tmp_path)
    (tmp_path / "densenet_fast/_C.abi3.so").write_bytes(b"no library")
    done = python(tmp_path, "import torch, densenet_fast; densenet_fast.DenseNet(4, (2,))(torch.randn(2, 3, 8, 8))")
    assert done.returncode == 0, done.stderr
    assert f"cannot be loaded by torch {torch.__version__}: {tmp_path}/densenet_fast/_C.abi3.so: " in done.stderr
    assert "not built" not in done.stderr


UNTOUCHED = """
import copy, os, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from torch.utils.data import DataLoader
written = []
def look(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.append(arguments[0])
    elif event.startswith(("socket.", "subprocess.", "os.mkdir", "os.remove", "os.rename", "os.exec", "os.system")):
        written.append(event)
sys.dont_write_bytecode = True
sys.addaudithook(look)
import densenet_fast
assert "HOME" not in os.environ
class Steps:
    def __init__(self, model):
        self.model = model
    def __len__(self):
        return 1
    def __getitem__(self, index):
        out = self.model(torch.ones(2, 3, 8, 8))
        out.sum().backward()
        assert not [w for w in written if w != os.devnull], written
        return out.tolist()
if __name__ == "__main__":
    here = Steps(densenet_fast.DenseNet(4, (2,), backend=sys.argv[1]))
    # Workers first: one that is forked from where threads have multiplied may never return from MKL's allocator.
    workers = [
        next(iter(DataLoader(here, collate_fn=list, num_workers=1, multiprocessing_context=method)))
        for method in ("fork", "spawn")
    ]
    with ThreadPoolExecutor(3) as pool:  # their calls are the first of this process
        expected, *others = pool.map(Steps.__getitem__, [copy.deepcopy(here) for _ in range(3)], range(3))
    assert others == [expected] * 2
    assert workers == [[expected]] * 2
"""


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "native", marks=pytest.mark.skipif(not LIBRARY.exists(), reason="the compiled library was not built")
        ),
    ],
)
def test_importing_and_a_step_need_no_home_no_network_and_nothing_writable(tmp_path, backend):
    """Nor a compiler: PATH is empty. Also in threads, and in forked and spawned workers."""
    script = tmp_path / "script.py"
    script.write_text(UNTOUCHED)
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, script, backend], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not LIBRARY.exists(), reason="the compiled library was not built")
def test_a_set_up_from_pip_to_the_command_that_mends_it():
    """All of them: `python -m tests.installing`."""
    outcome = run(BY_NAME['`CXX="ccache g++"`, no ccache'])
    assert "install ccache or unset CXX" in outcome.told
    assert outcome.runs_on == "native"
