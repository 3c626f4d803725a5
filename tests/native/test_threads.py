"""The threads of the kernels: by themselves, in a program in C++, also under ThreadSanitizer; and below a net."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import densenet_fast
from densenet_fast import _C
from tools.library import surroundings

ROOT = Path(__file__).parents[2]
SOURCES = ("tests/native/threads.cpp", *(f"csrc/{name}.cpp" for name in ("pool", "crowding", "processors")))

pytestmark = pytest.mark.entry


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The program as it is, and with a check of every access to memory."""
    folder = tmp_path_factory.mktemp("threads")
    built = []
    for name, *flags in (("plain", "-O2"), ("checked", "-O1", "-g", "-fsanitize=thread")):
        command = [*surroundings.compiler(), "-std=c++17", "-pthread", *flags, *SOURCES, "-o", str(folder / name)]
        subprocess.run(command, cwd=ROOT, check=True)
        built.append(str(folder / name))
    return built


def run(program: str, *arguments: str) -> str:
    checks = {"TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0"}
    command = [program, *arguments]
    done = subprocess.run(command, env={**os.environ, **checks}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("what", ["work", "quick", "held_up", "forked", "denormals", "crowded"])
def test_by_themselves(programs, what):
    for program in programs:
        run(program, what)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "110000 100000\n"}, 2),  # rounded up
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),  # of the group above
        ({"proc/self/cgroup": "0::/of/the/host\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "20000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "nothing that is known\n", "sys/fs/cgroup/cpu.max": "1 100000\n"}, 2),
    ],
)
def test_processors_by_quota(programs, tmp_path, files, expected):
    """Of a machine that has two: a quota lets fewer run, never more."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor")
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    two = sorted(os.sched_getaffinity(0))[:2]
    command = ["taskset", "--cpu-list", ",".join(map(str, two)), programs[0], "processors", str(tmp_path)]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) == expected


def step(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    y = model(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    _C.use_threads("either")
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [2, 3])
def test_results_do_not_depend_on_whose_threads_they_are(threads, number):
    """Bits of a training step, its gradients too, with more threads than processors perhaps, from many callers."""
    torch.set_num_threads(number)
    torch.manual_seed(0)
    model = densenet_fast.DenseNet(8, (3, 3), backend="native")
    x = torch.randn(5, 3, 33, 35)
    _C.use_threads("pytorch")
    expected = step(model, x)
    _C.use_threads("own")
    for _ in range(3):
        assert all(map(torch.equal, step(model, x), expected))

    model.eval()
    with torch.no_grad():
        expected = [model(x)]
    found: list[bool] = []

    def call() -> None:
        torch.set_num_threads(number)
        with torch.no_grad():
            found.extend(torch.equal(model(x), expected[0]) for _ in range(5))

    callers = [threading.Thread(target=call) for _ in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 100


@pytest.mark.parametrize(
    ("number", "whose", "helpers"), [(2, "own", 1), (1, "own", 0), (2, "pytorch", 0), (3, "either", 1)]
)
def test_how_many_there_are(number, whose, helpers):
    """On two processors: one beside the caller, if PyTorch has a thread for it; and where it has too many."""
    script = (
        "import os, sys, torch, densenet_fast; from densenet_fast import _C; from pathlib import Path\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n"
        f"torch.set_num_threads({number}); _C.use_threads({whose!r})\n"
        "densenet_fast.DenseNet(12, (1,), backend='native')(torch.randn(1, 3, 16, 16))\n"
        "names = [(task / 'comm').read_text().strip() for task in Path('/proc/self/task').iterdir()]\n"
        "print(names.count('densenet_fast'))"
    )
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) == helpers


def test_others_are_refused():
    with pytest.raises(RuntimeError, match="wrong threads: got mine, expected either, pytorch or own"):
        _C.use_threads("mine")
