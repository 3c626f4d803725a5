"""Where the fields of a launch's parameters lie: the structures of a checkout's sources, laid out as a C++ compiler
does."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# How values of a type are read (struct.unpack).
TYPES = {"int": "i", "int16_t": "h", "int32_t": "i", "int64_t": "q", "uint32_t": "I", "uint64_t": "Q"}
TYPES |= {"unsigned": "I", "float": "f", "double": "d", "bool": "?"}
POINTER = "Q"
MOST = 4096  # bytes of a launch's parameters
STRUCTURE = re.compile(r"\bstruct\s+(?:alignas\([^)]*\)\s*)?(\w+)\s*\{")
FIELD = re.compile(r"(?:const\s+)?([\w:]+)(?:<[^>]*>)?\s*(.*)", re.DOTALL)


class Field(NamedTuple):
    name: str
    type: str  # of `TYPES`, another structure's name, or "*"
    count: int | None  # of an array


class Layouts:
    """The structures that the sources below a folder declare, by name."""

    def __init__(self, sources: Path):
        self._types = dict(TYPES)
        self._structures: dict[str, list[Field]] = {}
        for file in sorted(sources.rglob("*")):
            if file.suffix in (".h", ".cuh", ".cu"):
                text = re.sub(r"//[^\n]*", "", file.read_text())
                for name, of in re.findall(r"enum class (\w+) : (\w+)", text):
                    self._types[name] = TYPES[of]
                constants = {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", text)}
                for name, body in _structures(text):
                    self._structures[name] = list(_fields(body, constants))

    def read(self, name: str, content: bytes) -> dict[str, Any]:
        """A structure's fields; pointers as numbers, structures as dictionaries, arrays as lists.

        Raises:
            ValueError: the content is not as long as the structure.
        """
        value, size = self._read(name, content.ljust(MOST, b"\0"), 0)
        if size != len(content):
            raise ValueError(f"{name}: got {len(content)} bytes, expected {size}, as its declaration has them")
        assert isinstance(value, dict)
        return value

    def _read(self, name: str, content: bytes, at: int) -> tuple[Any, int]:
        """And where it ends."""
        if (code := POINTER if name == "*" else self._types.get(name)) is not None:
            return struct.unpack_from(code, content, at)[0], at + struct.calcsize(code)
        found: dict[str, Any] = {}
        for field in self._structures[name]:
            at = _up(at, self._alignment(field.type))
            values = []
            for _ in range(1 if field.count is None else field.count):
                value, at = self._read(field.type, content, at)
                values.append(value)
            found[field.name] = values[0] if field.count is None else values
        return found, _up(at, self._alignment(name))

    def _alignment(self, name: str) -> int:
        if (code := POINTER if name == "*" else self._types.get(name)) is not None:
            return struct.calcsize(code)
        return max(self._alignment(field.type) for field in self._structures[name])


def _up(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _structures(text: str) -> Iterator[tuple[str, str]]:
    """Names and bodies."""
    for found in STRUCTURE.finditer(text):
        depth, end = 1, found.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        yield found[1], text[found.end() : end - 1]


def _fields(body: str, constants: dict[str, int]) -> Iterator[Field]:
    """Of a body without what is no field: functions, other structures, names of types, static members."""
    while (shorter := re.sub(r"\{[^{}]*\}", ";", body)) != body:
        body = shorter
    for declaration in (each.strip() for each in body.split(";")):
        if "(" in declaration or re.match(r"static|using|struct|template|private|friend|enum|$", declaration):
            continue
        found = FIELD.fullmatch(declaration)
        if found is None:
            continue
        for declared in found[2].split(","):
            name, _, length = declared.partition("=")[0].strip().partition("[")
            length = length.rstrip("]")
            count = None if not length else int(length) if length.isdigit() else constants.get(length, 0)
            yield Field(name.lstrip("* "), "*" if name.startswith("*") else found[1], count)
