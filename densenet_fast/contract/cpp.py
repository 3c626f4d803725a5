"""csrc/contract.h from the declaration: `python -m densenet_fast.contract.cpp > csrc/contract.h`.

For every operation a structure of its arguments, with its records inside, that takes itself from the flat values of an
operator's call; for a block the places in its flat lists.
"""

import sys
from collections.abc import Iterable

from .block import ALIGNED, NUMBERS, TENSORS, Half
from .declaration import DECLARATIONS, Argument, Declaration

_HEAD = """\
// What the operator of each operation takes, from densenet_fast/contract, where all of it is explained: written by
// `python -m densenet_fast.contract.cpp`, to be changed there. A structure is made of the values of a call, from which
// its members take theirs in order: `BlockFwd{values}`.
#pragma once

#include "stable.h"

namespace densenet_fast::contract {

"""
_TAIL = """
}  // namespace densenet_fast::contract
"""
_TYPES = {"Tensor": "Tensor", "Tensor?": "MaybeTensor", "int": "int64_t", "float": "double", "bool": "bool"}


def header() -> str:
    """The text of csrc/contract.h."""
    records: dict[type, tuple[Argument, ...]] = {}
    for declared in DECLARATIONS.values():
        records |= {record: arguments for _, record, arguments in declared.parameters if record is not None}
    parts = [
        _enumeration(
            "Half", [f"{_constant(half.name)} = {half.value}" for half in (Half.FIRST, Half.SECOND, Half.BOTH)]
        ),
        _enumeration("LayerTensor", [*map(_constant, TENSORS), "kTensors"]),
        _enumeration("LayerNumber", [*map(_constant, NUMBERS), "kNumbers"]),
        _names("LayerTensor", TENSORS),
        f"constexpr int64_t kAligned = {ALIGNED};",
        *(_structure(record.__name__, map(_member, arguments)) for record, arguments in records.items()),
        *map(_operation, DECLARATIONS.values()),
    ]
    return _HEAD + "\n\n".join(parts) + _TAIL


def _operation(declared: Declaration) -> str:
    facts = [
        f'static constexpr const char* kName = "{declared.name}";',
        f"static constexpr uint64_t kValues = {len(declared.arguments)};",
    ]
    members = (
        _member(arguments[0]) if record is None else f"{record.__name__} {name} = {{values}};"
        for name, record, arguments in declared.parameters
    )
    return _structure(_camel(declared.name), members, facts)


def _structure(name: str, members: Iterable[str], facts: Iterable[str] = ()) -> str:
    lines = (f"  {line}" for line in (*facts, "Values& values;", *members))
    return "\n".join([f"struct {name} {{", *lines, "};"])


def _member(argument: Argument) -> str:
    element = _TYPES[argument.type.removesuffix("[]")]
    cpp = f"std::vector<{element}>" if argument.type.endswith("[]") else element
    return f"{cpp} {argument.name} = values.take<{cpp}>();"


def _enumeration(name: str, constants: list[str]) -> str:
    return "\n".join([f"enum {name} : int64_t {{", *(f"  {constant}," for constant in constants), "};"])


def _names(enumeration: str, names: Iterable[str]) -> str:
    cases = (f'    case {_constant(name)}: return "{name}";' for name in names)
    lines = (f"inline const char* name_of({enumeration} value) {{", "  switch (value) {", *cases)
    return "\n".join([*lines, '    default: return "";', "  }", "}"])


def _constant(name: str | None) -> str:
    return f"k{_camel((name or '').lower())}"


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


if __name__ == "__main__":
    sys.stdout.write(header())
