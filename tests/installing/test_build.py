"""What is built, what is left out and what is said, with stand-ins for the compilers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from tools.library import architectures, build, compiling, surroundings
from tools.library.compiling import Job, run_all
from tools.library.surroundings import Missing

from . import COMPILER, LIBRARY, NVCC, ROOT, executable

pytestmark = pytest.mark.without_gpu  # a GPU needs the library, not what built it
HAS_CUDA = torch.version.cuda is not None
needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="the compiled library was not built")


class Built:
    """A build in a folder of its own: its exit, what it said, and its record."""

    def __init__(self, folder: Path, **environment: str):
        self.log = folder / "nvcc.log"
        given = {
            "CXX": str(executable(folder / "bin/cxx", COMPILER)),
            "CUDA_HOME": str(executable(folder / "cuda/bin/nvcc", NVCC).parents[1]),
            "STAND_IN_LIBRARY": str(LIBRARY),
            "STAND_IN_CUDA": f"{torch.version.cuda}.0",
            "STAND_IN_LOG": str(self.log),
            "DENSENET_FAST_BUILD_CUDA": "0",
            "DENSENET_FAST_BUILD_OBJECTS": "",
        }
        command = ["setup.py", "build_ext", "--build-lib", folder / "out", "--build-temp", folder / "objects"]
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=os.environ | given | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.succeeds, self.told = done.returncode == 0, done.stdout
        package = folder / "out/densenet_fast"
        self.library = package / "_C.abi3.so"
        record = package / "_build.json"
        self.record = json.loads(record.read_text()) if record.exists() else None


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"DENSENET_FAST_BUILD_CPU": "0"}, "DENSENET_FAST_BUILD_CPU=0 when it was built"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler: no-such-compiler not found, which CXX='no-such-compiler' asks"),
        ({"CXX": "no-such-launcher c++"}, "no C++ compiler: no-such-launcher not found, which CXX="),
        ({"CXX": "false"}, "the C++ compiler does not run: false --version ended with 1"),
        ({"STAND_IN_FAULT": "this compiler is too old"}, "cxx failed on csrc/cpu/"),
    ],
    ids=["left out", "no compiler", "no launcher", "does not run", "fails"],
)
def test_what_cannot_be_built_is_left_out_and_written_down(tmp_path, environment, told):
    built = Built(tmp_path, **environment)
    assert built.succeeds
    assert "building no CPU kernels: " in built.told
    assert told in built.told
    assert not built.library.exists()
    assert built.record["built"] is None
    left_out = built.record["left_out"]["CPU"]
    assert told in left_out["why"]
    # What the user asked not to be built needs nothing first: the command that mends it asks for it.
    assert bool(left_out["first"]) == ("DENSENET_FAST_BUILD_CPU" not in environment)
    assert environment.get("STAND_IN_FAULT", "") in "\n".join(left_out["said"])


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"CXX": "no-such-compiler", "DENSENET_FAST_BUILD_CPU": "1"}, "cannot be built: no C++ compiler"),
        ({"STAND_IN_FAULT": "this compiler is too old", "DENSENET_FAST_BUILD_CPU": "1"}, "this compiler is too old"),
        ({"DENSENET_FAST_BUILD_CPU": "yes"}, "got 'yes', expected auto, 0 or 1"),
        ({"DENSENET_FAST_BUILD_CUDA": "yes"}, "got 'yes', expected auto, 0 or 1"),
        ({"MAX_JOBS": "many"}, "MAX_JOBS: got 'many', expected the number"),
        ({"DENSENET_FAST_BUILD_CUDA": "1", "CUDA_HOME": "/nowhere"}, "=1, but the CUDA kernels cannot be built: "),
        ({"DENSENET_FAST_BUILD_CUDA": "1", "DENSENET_FAST_BUILD_CPU": "0"}, "library with the CPU kernels, which"),
    ],
)
def test_what_is_demanded_fails_with_the_reason(tmp_path, environment, told):
    built = Built(tmp_path, **environment)
    assert not built.succeeds
    assert told in built.told
    assert "Traceback" not in built.told
    assert built.record is None


@needs_library
def test_blanks_in_names_and_earlier_builds(tmp_path):
    """A library of an earlier build goes when this one leaves it out, or else a wheel would bring it along."""
    folder = tmp_path / "with a blank"
    built = Built(folder)
    assert built.succeeds, built.told
    assert built.record["built"]["torch"] == torch.__version__
    assert built.library.read_bytes() == LIBRARY.read_bytes()
    assert not Built(folder, DENSENET_FAST_BUILD_CPU="0").library.exists()


def test_a_library_that_does_not_load_is_left_out(tmp_path):
    (tmp_path / "junk").write_text("no library")
    built = Built(tmp_path, STAND_IN_LIBRARY=str(tmp_path / "junk"))
    assert built.succeeds
    assert not built.library.exists()
    assert "built but does not load: ImportError: " in built.record["left_out"]["CPU"]["why"]


@pytest.mark.skipif(not HAS_CUDA, reason="this torch has no CUDA")
@pytest.mark.parametrize("fault", [None, "nvcc is not in the mood"])
@needs_library
def test_cuda_kernels(tmp_path, fault):
    """One that fails leaves the CPU's; the host compiler is the one of CXX; old architectures are left out."""
    environment = {"DENSENET_FAST_BUILD_CUDA": "auto", "TORCH_CUDA_ARCH_LIST": "7.5;Ampere"}
    built = Built(tmp_path, **environment, **({"STAND_IN_NVCC_FAULT": fault} if fault else {}))
    assert built.succeeds, built.told
    assert built.library.exists()
    assert "no CUDA kernels for architecture 7.5: the kernels need compute capability 8.0" in built.told
    if fault:
        left_out = built.record["left_out"]["CUDA"]
        assert "nvcc failed on csrc/cuda/" in left_out["why"]
        assert left_out["said"] == [fault]
        assert "nvcc" not in built.record["built"]
    else:
        assert built.record["built"]["architectures"] == ["8.0", "8.6+PTX"]
        lines = built.log.read_text().splitlines()
        assert len(lines) == len(list((ROOT / "csrc/cuda").glob("*.cu")))
        assert all(f"-ccbin {tmp_path}/bin/cxx" in line for line in lines)


@pytest.mark.parametrize(
    "listed",
    [*architectures.NAMES, "8.0 9.0+PTX", "8.0;9.0a", "Ampere;Hopper", "Ampere+Tegra Ada", "12.0a+PTX"],
)
def test_architectures_are_those_that_pytorch_reads(listed, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    flags = {flag for name in architectures.read(listed) for flag in architectures.gencode(name)}
    assert flags == set(cpp_extension._get_cuda_arch_flags())


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ("Volta;7.5", "of which nothing is left"),
        ("Hooper", "got 'Hooper', expected compute capabilities"),
        ("native", "nvidia-smi shows no GPU here"),
    ],
)
def test_no_architecture_is_an_end(listed, told, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=re.escape(told)):
        architectures.chosen(str(executable(tmp_path / "nvcc", NVCC)))


def test_default_and_native_architectures_are_those_that_nvcc_knows(monkeypatch, tmp_path):
    nvcc = str(executable(tmp_path / "nvcc", NVCC.replace("compute_100\\n", "")))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert architectures.chosen(nvcc) == (
        ["8.0", "8.6", "8.9", "9.0+PTX"],
        ["10.0+PTX: nvcc does not know it"],
    )
    executable(tmp_path / "nvidia-smi", "#!/bin/sh\nprintf '12.0\\n8.0\\n8.0\\n'\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "native")
    assert architectures.chosen(nvcc) == (["8.0", "9.0+PTX"], [])


@pytest.mark.parametrize(
    ("environment", "command", "host"),
    [
        ({}, ["c++"], []),
        ({"CXX": "ccache g++ -m64"}, ["ccache", "g++", "-m64"], ["-ccbin", "g++"]),
        ({"CC": "{}/gcc-12"}, ["{}/g++-12"], ["-ccbin", "{}/g++-12"]),
        ({"CC": "{}/clang"}, ["{}/clang++"], ["-ccbin", "{}/clang++"]),
        ({"CC": "tcc"}, ["c++"], ["-ccbin", "c++"]),
    ],
)
def test_which_compiler(environment, command, host, monkeypatch, tmp_path):
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("g++-12", "clang++"):
        executable(tmp_path / name, "")
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert surroundings.compiler() == [word.format(tmp_path) for word in command]
    assert surroundings.host_compiler() == [word.format(tmp_path) for word in host]


def job(folder: Path, name: str, script: str) -> Job:
    (folder / f"{name}.o.d").write_text("")
    return Job(folder, Path(name), folder / f"{name}.o", ("/bin/sh", "-c", script), "sh")


@pytest.mark.parametrize(
    ("unknown", "left_out"),
    [
        (None, set()),
        ("-mamx-tile", {"amx_bf16"}),
        ("-mamx-bf16", {"amx_bf16"}),
        ("-mavx512bf16", {"amx_bf16", "avx512_bf16"}),
    ],
)
def test_an_instruction_set_that_the_compiler_does_not_know_is_left_out(unknown, left_out, monkeypatch, tmp_path):
    refuses = f'case " $* " in *" {unknown} "*) exit 1 ;; esac'
    monkeypatch.setenv("CXX", str(executable(tmp_path / "c++", f"#!/bin/sh\n{refuses}\n")))
    build._takes.cache_clear()
    found = set(build.instruction_sets())
    build._takes.cache_clear()
    assert found == set(build.INSTRUCTION_SETS) - left_out


def test_as_many_compilers_as_max_jobs_run_beside_each_other(monkeypatch, tmp_path):
    """Each of them leaves a file while it runs, and notes how many there are."""
    script = "cd {}; touch on.$$; ls on.* | wc -l >> seen; sleep 0.05; rm on.$$"
    monkeypatch.setenv("MAX_JOBS", "2")
    run_all([job(tmp_path, str(i), script.format(tmp_path)) for i in range(6)], 1e9)
    assert max(map(int, (tmp_path / "seen").read_text().split())) <= 2


def test_jobs_fit_into_memory(monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(compiling, "free_memory", lambda: 10 * 2**30)
    assert compiling.number_of_jobs(2) == 4
    assert compiling.number_of_jobs(100) == 1
    monkeypatch.setattr(compiling, "free_memory", lambda: None)
    assert compiling.number_of_jobs(2) == 64


def test_the_first_failure_ends_it_with_the_last_lines(monkeypatch, tmp_path):
    monkeypatch.setenv("MAX_JOBS", "1")
    jobs = [job(tmp_path, "first", "seq 100; exit 3"), job(tmp_path, "second", f"touch {tmp_path}/second")]
    with pytest.raises(Missing, match="sh failed on first") as failed:
        run_all(jobs, 1)
    assert failed.value.said.splitlines() == [str(i) for i in range(89, 101)]
    assert not (tmp_path / "second").exists()


def test_only_what_has_changed_is_compiled(tmp_path):
    """In content, command or compiler; an older file or another folder is no change."""
    built, source = tmp_path / "a.o", Path("a source.c")
    script = f"echo again >> '{tmp_path}/log'; touch '{built}'; echo '{built}: a\\ source.c' > '{built}.d'"

    def times(command: str = script, content: str = "", folder: str = "here", compiler: str = "sh 1") -> int:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / source).write_text(content)
        Job(tmp_path / folder, source, built, ("/bin/sh", "-c", command), compiler).run()
        return (tmp_path / "log").read_text().count("again")

    assert times() == 1
    assert times() == 1
    assert times(folder="there") == 1
    assert times(content="int a;") == 2
    assert times(content="int b;") == 3
    assert times(content="int b;", command=f"{script}; true") == 4
    assert times(content="int b;", command=f"{script}; true", compiler="sh 2") == 5
    (tmp_path / "here" / source).unlink()
    built.unlink()
    assert times(content="int b;", command=f"{script}; true", compiler="sh 2") == 6
