"""What a checkout's native backend launches in a training step, and the machine code of it."""

import pickle
import re
import subprocess
import tempfile
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from tools.gpucheck.cuda.launches import stem
from tools.gpucheck.triton import sass

from ..machine_code import Code, parse
from ..plans import run
from .layouts import Layouts

SCRIPT = Path(__file__).with_name("recorded.py")
SECTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
ARCHITECTURE = "sm_90"


class Compiled(NamedTuple):
    code: Code
    registers: int
    shared: int  # bytes of shared memory, with those that are asked for at the launch
    warps: int


class Planned(NamedTuple):
    """A launch. `arguments`: its parameters by the names of their fields."""

    kernel: str
    operation: str  # of the contract, that makes it
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    variant: int  # its place among those compiled
    element: int  # bytes of an activation's element
    threads: int
    parameters: bytes

    @property
    def programs(self) -> int:
        return prod(self.grid)


class Step(NamedTuple):
    launches: list[Planned]
    variants: list[Compiled]


def step(tree: Path, model: str, image: int, batch: int, dtype: str) -> Step:
    """Launched by the checkout itself, in a process of its own; the code is that of its compiled library.

    Raises:
        RuntimeError: the checkout has none for this architecture.
    """
    found = pickle.loads(run(tree, SCRIPT, model, str(image), str(batch), dtype))
    layouts = Layouts(tree / "csrc")
    machine_code = _machine_code(tree, {stem(name) for name, *_ in found})
    places: dict[Any, int] = {}
    variants, launches = [], []
    for mangled, operation, grid, threads, shared, parameters in found:
        name, structure = names(mangled)
        code, usage = machine_code[stem(mangled)]
        key = stem(mangled), shared, threads
        if key not in places:
            places[key] = len(places)
            variants.append(Compiled(code, usage.registers, shared + usage.shared, threads // 32))
        element = 4 if dtype == "float32" else 2
        arguments = _renamed(layouts.read(structure, parameters))
        launches.append(Planned(name, operation, grid, arguments, places[key], element, threads, parameters))
    return Step(launches, variants)


def _renamed(a: dict[str, Any]) -> dict[str, Any]:
    """Parameters of an older checkout (c47a501) by their later names."""
    if "source" in a:
        a["main_loop"] = a.pop("source")
    if "weight_pieces" in a:
        a["weight"] = {"inputs": a["inputs"], "outputs": a["outputs"], "pieces": a["weight_pieces"]}
    return a


def names(mangled: str) -> tuple[str, str]:
    """Of a kernel, the last of the names that it is nested in, and of its parameters' structure, the last of all."""
    rest, kernel = mangled.removeprefix("_ZN"), ""
    while found := re.match(r"\d+", rest):
        end = found.end() + int(found[0])
        kernel, rest = rest[found.end() : end], rest[end:]
    *_, structure = (m[2] for m in re.finditer(r"(?=(?<!\d)(\d+)([A-Z]\w*)E$)", rest) if int(m[1]) == len(m[2]))
    return kernel, structure


def _machine_code(tree: Path, wanted: set[str]) -> dict[str, tuple[Code, sass.Usage]]:
    """By the stem of the kernel's mangled name."""
    libraries = sorted((tree / "densenet_fast").glob("_C*.so"))
    found: dict[str, tuple[Code, sass.Usage]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for library in libraries[:1]:
            command = [sass.BIN / "cuobjdump", "-xelf", ARCHITECTURE, library.resolve()]
            subprocess.run(command, cwd=folder, capture_output=True, check=False)
        for file in sorted(Path(folder).iterdir()):
            cubin = file.read_bytes()
            usages = {stem(name): usage for name, usage in sass.usages(cubin).items()}
            if wanted & usages.keys():
                _, *sections = SECTION.split(sass.disassemble(cubin, encoded=True))
                texts = {stem(name): text for name, text in zip(sections[::2], sections[1::2], strict=True)}
                found |= {name: (parse(texts[name]), usages[name]) for name in wanted & usages.keys()}
    if missing := wanted - found.keys():
        raise RuntimeError(
            f"no machine code for {ARCHITECTURE} of {len(missing)} of {len(wanted)} kernels: got "
            f"{libraries[0] if libraries else 'no compiled library'}, expected one built from these sources with "
            f"TORCH_CUDA_ARCH_LIST=9.0 ({tree})"
        )
    return found
