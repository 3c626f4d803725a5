"""The CUDA backend on a machine without a GPU: the entries and launches of csrc on CPU tensors, with the PTX that nvcc
emitted run by `tests.ptx`. `Machine().operations` are those of the contract, for any backend's caller."""

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from densenet_fast import ops

from .. import ptx

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
NINJA = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
INCLUDE = Path(torch.__file__).parent / "include"
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{INCLUDE}")
ENTRIES = (
    *("arguments", "batch_norm", "bn_relu_conv1x1", "bn_relu_conv3x3", "bottleneck", "dense_block", "head", "stem"),
    "transition",
)
NVCC = f"nvcc -std=c++17 -O3 --expt-relaxed-constexpr -arch=compute_80 -code=compute_80 -I{INCLUDE} -Xcompiler=-fPIC"
CXX = (
    f"c++ -std=c++17 -O1 -fPIC -fvisibility=hidden -DDENSENET_FAST_CUDA -DUSE_CUDA -I{INCLUDE} -I{ROOT / 'csrc'} "
    f"-I{sysconfig.get_path('include')}"
)
TORCH_CPU = f"-L{INCLUDE.parent / 'lib'} -ltorch_cpu"
TORCH = f"{TORCH_CPU} -Wl,--no-as-needed -ltorch"


def why_not() -> str | None:
    """Why there is nothing to run, as a clause."""
    if shutil.which("nvcc") is None:
        return "there is no nvcc to compile the CUDA kernels"
    if shutil.which("c++") is None or NINJA is None:
        return "there is no C++ compiler, or no ninja"
    return None


def compile_to(folder: Path) -> None:
    """Into `folder` the PTX of every kernel file, for one architecture, and libraries of entries and launches: on
    runtime.cpp; on csrc's own context (context.so); that without libtorch (alone.so). And the stub runtime."""
    lines = [
        "rule nvcc",
        f"  command = mkdir -p $out.d && {NVCC} -keep -keep-dir $out.d -c $in -o $out",
        "rule cxx",
        f"  command = {CXX} $flags -c $in -o $out",
        "rule link",
        "  command = c++ -shared $in $flags -o $out",
    ]
    objects = []
    for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        lines.append(f"build {source.stem}.cu.o: nvcc {source}")
        objects.append(f"{source.stem}.cu.o")
    for name in ENTRIES:
        lines += [f"build {name}.o: cxx {ROOT / 'csrc' / name}.cpp", f"  flags = -include {HERE / 'ptx_device.h'}"]
        objects.append(f"{name}.o")
    lines += [
        f"build runtime.o: cxx {HERE / 'runtime.cpp'}",
        f"build library.so: link {shlex.join(objects)} runtime.o",
        f"  flags = {TORCH_CPU}",
        f"build context.o: cxx {ROOT / 'csrc/cuda_context.cpp'}",
        f"build context.so: link {shlex.join(objects)} context.o",
        f"  flags = {TORCH}",
        f"build alone.so: link {shlex.join(objects)} context.o",
        f"  flags = {TORCH_CPU}",
        f"build stub_runtime.o: nvcc {HERE / 'stub_runtime.cpp'}",
        "build libcuda.so.1: link stub_runtime.o",
        "  flags = -Wl,-soname,libcuda.so.1",
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines))
    done = subprocess.run([NINJA, "-C", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def sources_hash() -> str:
    """Of everything that `compile_to` reads."""
    files = [f for pattern in ("*.h", "*.cpp", "*.cuh", "*.cu") for f in (ROOT / "csrc").rglob(pattern)]
    files += [*HERE.glob("*.h"), *HERE.glob("*.cpp"), HERE / "device.py"]
    content = b"".join(f.read_bytes() for f in sorted(files)) + torch.__version__.encode()
    return hashlib.sha256(content).hexdigest()[:16]


def define() -> tuple[torch.library.Library, dict[str, Callable]]:
    """The operators that a library of `compile_to` registers: their schemas, which last as long as the library
    returned, and they by name."""
    schemas = torch.library.Library("densenet_fast_ptx", "FRAGMENT")
    operations = {}
    for operation in ops.OPERATIONS + ops.OPTIONAL:
        schemas.define(f"{operation.name}.native{operation.schema}")
        schemas.impl(f"{operation.name}.native", operation.fake, "Meta")
        operations[operation.name] = getattr(torch.ops.densenet_fast_ptx, operation.name).native
    return schemas, operations


class Region(ctypes.Structure):
    """A matrix in memory: of runtime.cpp."""

    _fields_ = [
        ("data", ctypes.c_size_t),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("written", ctypes.c_bool),
    ]

    @property
    def end(self) -> int:
        return self.data + (self.rows - 1) * self.stride + self.columns


class Parameters(ptx.Struct):
    """A kernel's structure of parameters as the launch passed it; every pointer into a region is one to its tensor."""

    def __init__(self, content: bytes, regions: list[Region]):
        self.content, self.spans = content, _spans(regions)
        self.fields = tuple(self._view(r) for r in regions)

    def _view(self, region: Region) -> torch.Tensor:
        start, storage = next((s, t) for s, t in self.spans if s <= region.data < s + len(t))
        return storage.as_strided((region.rows, region.columns), (region.stride, 1), region.data - start)

    def pack(self, address) -> bytes:
        for view in self.fields:
            address(view)
        words = memoryview(bytearray(self.content.ljust(-(-len(self.content) // 8) * 8, b"\0"))).cast("Q")
        for i, word in enumerate(words):
            for start, storage in self.spans:
                if start <= word < start + len(storage):
                    words[i] = address(storage[word - start :][:0].new_empty(0).set_(storage)) + word - start
        return words.tobytes()[: len(self.content)]


def _spans(regions: list[Region]) -> list[tuple[int, torch.Tensor]]:
    """The memory of all regions, those that overlap as one: addresses, and tensors of bytes."""
    spans: list[list[int]] = []
    for region in sorted(regions, key=lambda r: r.data):
        if spans and region.data < spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], region.end)
        else:
            spans.append([region.data, region.end])
    return [(a, torch.frombuffer((ctypes.c_uint8 * (b - a)).from_address(a), dtype=torch.uint8)) for a, b in spans]


def words(content: bytes, is_address: Callable[[int], bool]) -> list[int | str]:
    """A kernel's parameters in words of 8 bytes, with "address" for each that is one."""
    padded = memoryview(content.ljust(-(-len(content) // 8) * 8, b"\0")).cast("Q")
    return ["address" if is_address(word) else word for word in padded]


class Launched(NamedTuple):
    kernel: str
    grid: tuple[int, ...]
    threads: int
    shared: int  # bytes of dynamic shared memory


class Machine:
    """A GPU of PTX. `device`: its multiprocessors and shared memory; `order`: from the number of CTAs, the order in
    which they arrive; `replacement`: kernels to run instead, by `stem`; `launches`: what was launched, and unless
    `idle` was run; `parameters`: of each, in `words`, if `noting`."""

    _SIGNATURE = ctypes.CFUNCTYPE(
        None,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_uint * 3),
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.POINTER(Region),
        ctypes.c_int64,
    )
    _FACTS = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))

    def __init__(self, folder: Path):
        self.folder = folder
        self.texts = {}
        for file in folder.glob("*.cu.o.d/*.ptx"):
            text = file.read_text()
            self.texts |= dict.fromkeys(ptx.entries(text), text)
        self.kernels: dict[str, ptx.Launch] = {}
        self.fault: BaseException | None = None
        self._library = ctypes.CDLL(str(folder / "library.so"))
        self._library.counter_left.restype = ctypes.c_bool
        self._callbacks = self._SIGNATURE(self._launch), self._FACTS(self._facts)
        self._library.set_callbacks(*self._callbacks)
        self.reset()
        self._schemas, operations = define()
        self.operations = SimpleNamespace(**{name: self._checked(o) for name, o in operations.items()})

    def reset(self) -> None:
        self.launches: list[Launched] = []
        self.noting, self.parameters = False, []
        self.set_idle(False)
        self.order = self.replacement = None
        self.device = (4, 232448)  # multiprocessors, shared memory of a block
        self.set(tf32=False)
        self.refuse_shared_memory(False)

    def set(self, tf32: bool) -> None:
        self._library.set_machine(*self.device, tf32)

    def set_idle(self, idle: bool) -> None:
        """Whether launches are only noted, and memory is left as it is."""
        self.idle = idle
        self._library.set_idle(idle)

    def refuse_shared_memory(self, refuse: bool) -> None:
        """More of it than every block gets."""
        self._library.refuse_shared_memory(refuse)

    def opcheck(self, operation, args) -> None:
        """torch.library.opcheck; its calls of the operation run no kernel that could raise in a callback unseen."""
        self.fault = None
        torch.library.opcheck(operation, args)
        if self.fault is not None:
            raise self.fault

    def _checked(self, operation):
        """An exception cannot leave a callback: it is kept, and raised when the operation has returned."""

        def call(*args):
            self.fault = None
            result = operation(*args)
            left = self._library.counter_left()
            if self.fault is not None:
                raise self.fault
            assert not left, "a counter is not zero for the next launch"
            return result

        call.__qualname__ = operation._schema.name  # what `native.cases.run` knows it by
        return call

    def _launch(self, name, grid, threads, shared, params, regions, count):
        if self.fault is not None:
            return
        try:
            self.launches.append(Launched(name.decode(), tuple(grid.contents), threads, shared))
            if self.noting:
                self._note(params, regions[:count])
            if not self.idle:
                self._run(*self.launches[-1], params, regions[:count])
        except BaseException as fault:
            self.fault = fault

    def _note(self, params, regions):
        content = ctypes.string_at(params, self.facts(self.launches[-1].kernel)[2])
        self.parameters.append(words(content, lambda word: any(r.data <= word < r.end for r in regions)))

    def kernel(self, name: str) -> ptx.Launch:
        return self.kernels.get(name) or self.kernels.setdefault(name, ptx.Launch(self.texts[name], name))

    def _facts(self, name, static_bytes, most_threads):
        static_bytes[0], most_threads[0], _ = self.facts(name.decode())

    def facts(self, name: str) -> tuple[int, int, int]:
        """What a driver reads from a compiled kernel: static shared memory, the most threads, bytes of parameters."""
        kernel = self.kernel(name).kernel
        limit = re.search(rf"\.entry {name}\(.*?\.maxntid (\d+)", self.texts[name], re.DOTALL)
        return kernel.shared_bytes, int(limit[1]), kernel.parameters[0].size

    def _run(self, name, grid, threads, shared, params, regions):
        if self.replacement is not None and stem(name) in self.replacement:
            kernel = self.replacement[stem(name)]
        else:
            kernel = self.kernel(name)
        content = ctypes.string_at(params, kernel.kernel.parameters[0].size)
        parameters = Parameters(content, regions)
        before = [view.clone() for view in parameters.fields]
        order = None if self.order is None else self.order(grid[0] * grid[1] * grid[2])
        kernel.run(grid, threads, [parameters], shared, order=order)
        for region, old, view in zip(regions, before, parameters.fields, strict=True):
            written_elsewhere = any(r.written and r.data < region.end and region.data < r.end for r in regions)
            assert region.written or written_elsewhere or torch.equal(old, view), f"{name} wrote what it only reads"


def stem(name: str) -> str:
    """A kernel's mangled name without what depends on its file's place and content."""
    return re.sub(r"\d+_GLOBAL__N__[0-9a-f]+_\d+_\w+?_cu_[0-9a-f]{8}", "", name)


def build(cache: Path) -> Path:
    """The folder of what `compile_to` makes of the present sources, from `cache` if it is there."""
    folder = cache / sources_hash()
    if not (folder / "library.so").exists():
        shutil.rmtree(cache, ignore_errors=True)
        compile_to(folder)
    return folder


os.environ.setdefault("OMP_NUM_THREADS", "1")
