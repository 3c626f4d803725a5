"""A GPU of PTX: what host code, compiled by nvcc and linked to launches.cpp, launches on CPU tensors is run by
`tools.gpucheck.ptx`, or only noted.

    machine = Machine(ctypes.CDLL("library.so"), Path("folder of nvcc -keep").glob("*.ptx"))
    ...  # call into the library
    machine.raise_fault()
    print(machine.launches)
"""

import ctypes
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from .. import ptx


class Region(ctypes.Structure):
    """A matrix in memory: of launches.h."""

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


class Parameter(ptx.Struct):
    """A parameter as the launch passed it, one value or a structure; every word of it that points into a region is an
    address in the region's tensor."""

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
    block: tuple[int, ...]
    shared: int  # bytes of dynamic shared memory


class Facts(NamedTuple):
    """What a driver reads from a compiled kernel."""

    static_bytes: int  # of shared memory
    most_threads: int
    parameter_bytes: int


class Machine:
    """`order`: from the number of CTAs, the order in which they arrive; `replacement`: kernels to run instead, by
    `stem`; `launches`: what was launched, and unless idle was run; `parameters`: of each, in `words`, if `noting`;
    `wavefronts`: of shared memory, by kernel and line of its PTX, if they are `counting`."""

    _LAUNCH = ctypes.CFUNCTYPE(
        None,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_uint * 3),
        ctypes.POINTER(ctypes.c_uint * 3),
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(Region),
        ctypes.c_int64,
    )
    _FACTS = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))

    def __init__(self, library: ctypes.CDLL, files: Iterable[Path]):
        """`library`: linked to launches.cpp; `files`: the PTX of its kernels."""
        self.texts: dict[str, str] = {}  # by kernel
        for file in files:
            text = file.read_text()
            self.texts |= dict.fromkeys(ptx.entries(text), text)
        self.kernels: dict[str, ptx.Launch] = {}
        self.fault: BaseException | None = None
        self.library = library
        self._callbacks = self._LAUNCH(self._launch), self._FACTS(self._facts)
        library.set_callbacks(*self._callbacks)
        self.reset()

    def reset(self) -> None:
        self.launches: list[Launched] = []
        self.noting, self.parameters = False, []
        self.counting, self.wavefronts = False, {}
        self.order = self.replacement = None
        self.set_idle(False)
        self.set_device(4, 232448)
        self.refuse_shared_memory(False)

    def set_device(self, multiprocessors: int, shared_bytes: int) -> None:
        """Another device, of whose kernels nothing is known yet. `shared_bytes`: of a block, at most."""
        self.library.set_device(multiprocessors, shared_bytes)

    def set_idle(self, idle: bool) -> None:
        """Whether launches are only noted, and memory is left as it is."""
        self.idle = idle
        self.library.set_idle(idle)

    def refuse_shared_memory(self, refuse: bool) -> None:
        """More of it than every block gets."""
        self.library.refuse_shared_memory(refuse)

    def raise_fault(self) -> None:
        """What a launch has raised since the last time: an exception cannot leave a callback."""
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault

    def kernel(self, name: str) -> ptx.Launch:
        return self.kernels.get(name) or self.kernels.setdefault(name, ptx.Launch(self.texts[name], name))

    def facts(self, name: str) -> Facts:
        kernel = self.kernel(name).kernel
        limit = re.search(rf"\.entry {name}\([^{{]*?\.maxntid ([\d, ]+)", self.texts[name])
        most_threads = math.prod(map(int, limit[1].split(","))) if limit else 1024
        return Facts(kernel.shared_bytes, most_threads, sum(p.size for p in kernel.parameters))

    def _facts(self, name, static_bytes, most_threads):
        static_bytes[0], most_threads[0], _ = self.facts(name.decode())

    def _launch(self, name, grid, block, shared, args, regions, count):
        if self.fault is not None:
            return
        try:
            launched = Launched(name.decode(), tuple(grid.contents), tuple(block.contents), shared)
            self.launches.append(launched)
            sizes = [p.size for p in self.kernel(launched.kernel).kernel.parameters]
            contents = [ctypes.string_at(args[i], size) for i, size in enumerate(sizes)]
            if self.noting:
                self._note(contents, regions[:count])
            if not self.idle:
                self._run(launched, contents, regions[:count])
        except BaseException as fault:
            self.fault = fault

    def _note(self, contents: list[bytes], regions: list[Region]) -> None:
        found = (words(c, lambda word: any(r.data <= word < r.end for r in regions)) for c in contents)
        self.parameters.append([word for each in found for word in each])

    def _run(self, launched: Launched, contents: list[bytes], regions: list[Region]) -> None:
        name = launched.kernel
        if self.replacement is not None and stem(name) in self.replacement:
            kernel = self.replacement[stem(name)]
        else:
            kernel = self.kernel(name)
        parameters = [Parameter(content, regions) for content in contents]
        before = [view.clone() for view in parameters[0].fields]
        order = None if self.order is None else self.order(launched.grid[0] * launched.grid[1] * launched.grid[2])
        counts = kernel.run(
            launched.grid, launched.block, parameters, launched.shared, order=order, banks=self.counting
        )
        for line, found in (counts.wavefronts or {}).items():
            of_kernel = self.wavefronts.setdefault(name, {})
            of_kernel[line] = of_kernel.get(line, ptx.Wavefronts()).plus(*found)
        for region, old, view in zip(regions, before, parameters[0].fields, strict=True):
            written_elsewhere = any(r.written and r.data < region.end and region.data < r.end for r in regions)
            assert region.written or written_elsewhere or torch.equal(old, view), f"{name} wrote what it only reads"


def stem(name: str) -> str:
    """A kernel's mangled name without what depends on its file's place and content."""
    return re.sub(r"\d+_GLOBAL__N__[0-9a-f]+_\d+_\w+?_cu_[0-9a-f]{8}", "", name)
