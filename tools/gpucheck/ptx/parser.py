"""Reads one kernel out of PTX text, as nvcc, inline assembly and Triton write it, into a flat list of instructions."""

import bisect
import re
from dataclasses import dataclass, field
from functools import cached_property

from .faults import Unsupported

# A statement is a scope's brace, a label, or text up to a semicolon in which braces hold vector operands.
STATEMENT = re.compile(r"\s*(?:(\{)|(\})|([\w$]+):(?!:)|([^;{}]*(?:\{[^;{}]*\}[^;{}]*)*);)")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?([\w$]+)(?:\[(\d+)\])?"
)
SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
REGISTER = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/|^\s*\.(?:loc|file)\b[^\n]*", re.DOTALL | re.MULTILINE)


def bytes_of(type_name: str) -> int:
    return 1 if type_name == "pred" else int(re.sub(r"\D", "", type_name)) // 8


@dataclass(frozen=True)
class Address:
    base: str
    offset: int


@dataclass(frozen=True)
class Parameter:
    name: str
    type_name: str
    size: int


@dataclass(frozen=True)
class Instruction:
    op: str
    guard: str | None
    negated: bool
    operands: tuple[str | Address | tuple[str, ...], ...]
    line: int
    text: str

    @cached_property
    def parts(self) -> list[str]:
        return self.op.split(".")

    @cached_property
    def type_name(self) -> str:
        return self.op.rsplit(".", 1)[-1]


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter] = field(default_factory=list)
    threads: int | None = None  # .reqntid
    registers: dict[str, str] = field(default_factory=dict)  # name, or prefix of numbered names -> type
    shared: dict[str, int] = field(default_factory=dict)  # symbol -> offset; dynamic memory begins at shared_bytes
    shared_bytes: int = 0
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)  # label -> labels a brx.idx chooses from


def entries(text: str) -> list[str]:
    """The names of all kernels in the text."""
    return re.findall(r"\.entry\s+([\w$]+)", text)


def parse(text: str, name: str) -> Kernel:
    start = re.search(rf"\.entry\s+{re.escape(name)}\s*\(", text)
    if start is None:
        raise KeyError(f"no kernel {name} among {entries(text)}")
    kernel = Kernel(name)
    close = text.index(")", start.end())
    for _, type_name, parameter, count in PARAMETER.findall(text[start.end() : close]):
        kernel.parameters.append(Parameter(parameter, type_name, bytes_of(type_name) * int(count or 1)))
    begin = text.index("{", close)
    if limit := re.search(r"\.reqntid\s+([\d, ]+)", text[close:begin]):
        kernel.threads = 1
        for extent in limit[1].split(","):
            kernel.threads *= int(extent)
    module = re.sub(r"\.entry.*?\n\}", "", text[: start.start()], flags=re.DOTALL)
    dynamic = [m for m in SHARED.findall(module) if m[3] == "" and f".extern .shared .align {m[0]} " in module]
    for declaration in SHARED.findall(module):
        if declaration not in dynamic:
            _place(kernel, declaration)
    _body(kernel, text, begin)
    for align, _, symbol, _ in dynamic:
        kernel.shared_bytes = -(-kernel.shared_bytes // int(align)) * int(align)
        kernel.shared[symbol] = kernel.shared_bytes
    return kernel


def _place(kernel: Kernel, declaration: tuple[str, str, str, str]) -> None:
    align, type_name, symbol, count = declaration
    at = -(-kernel.shared_bytes // int(align or 1)) * int(align or 1)
    kernel.shared[symbol] = at
    kernel.shared_bytes = at + bytes_of(type_name) * int(count or 1)


def _body(kernel: Kernel, text: str, begin: int) -> None:
    newlines = [m.start() for m in re.finditer("\n", text)]
    end = re.compile(r"^\}", re.MULTILINE).search(text, begin).end()
    body = COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text[begin:end])
    scopes: list[dict[str, str]] = []  # names declared in each open scope -> the name in kernel.registers
    opened = at = 0
    newest = ""
    while at < len(body):
        statement = STATEMENT.match(body, at)
        if statement is None:
            break
        at = statement.end()
        opening, closing, label, code = statement.groups()
        if opening:
            scopes.append({})
            opened += 1
        elif closing:
            scopes.pop()
        elif label:
            kernel.labels[label] = len(kernel.code)
            newest = label
        elif code.startswith("."):
            if code.startswith(".branchtargets"):
                kernel.tables[newest] = re.findall(r"[\w$]+", code)[1:]
            else:
                _directive(kernel, code, scopes, opened)
        elif code.strip():
            where = begin + statement.start(4)
            kernel.code.append(_instruction(code, scopes, bisect.bisect(newlines, where) + 1))
    if scopes:
        raise ValueError(f"{kernel.name}: {len(scopes)} scopes are not closed")


def _directive(kernel: Kernel, code: str, scopes: list[dict[str, str]], opened: int) -> None:
    if registers := REGISTER.match(code):
        for name in (n.strip() for n in registers[2].split(",")):
            prefix = name.split("<")[0]
            unique = prefix if len(scopes) == 1 else f"{prefix}@{opened}"
            scopes[-1][prefix] = unique
            kernel.registers[unique] = registers[1]
    elif shared := SHARED.match(code):
        _place(kernel, shared.groups())
    elif not code.startswith(".pragma"):
        raise Unsupported(f"{kernel.name}: directive {' '.join(code.split())}")


def _instruction(code: str, scopes: list[dict[str, str]], line: int) -> Instruction:
    guard, negated = None, False
    code = code.strip()
    if code.startswith("@"):
        guard, code = code[1:].split(None, 1)
        negated, guard = guard.startswith("!"), guard.lstrip("!")
    op, *rest = code.split(None, 1)

    def resolve(name: str) -> str:
        for scope in reversed(scopes[1:]):
            if name in scope:
                return scope[name]
        return name

    def operand(token: str):
        if token.startswith("{"):
            return tuple(resolve(n.strip()) for n in token[1:-1].split(","))
        if token.startswith("["):
            base, _, offset = token[1:-1].partition("+")
            return Address(resolve(base.strip()), int(offset.strip() or "0", 0))
        return resolve(token)

    operands = tuple(operand(t) for t in OPERAND.findall(rest[0] if rest else ""))
    return Instruction(op, None if guard is None else resolve(guard), negated, operands, line, " ".join(code.split()))
