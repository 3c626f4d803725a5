"""What follows from the declaration in operations.py: the argument list of each operation, its schema, and the two ways
between records and the flat arguments of an operator."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from .operations import Operations
from .records import Role

_READ = Role(True, False)
_SCHEMA_TYPES = {Tensor: "Tensor", int: "int", bool: "bool", float: "float"}


class Argument(NamedTuple):
    """One argument of an operator; a record makes several."""

    name: str
    type: str  # as in a schema, without what is known of aliases: "Tensor?[]"
    role: Role
    mutable: bool


class Declaration(NamedTuple):
    """One operation."""

    name: str
    parameters: tuple[tuple[str, type | None, tuple[Argument, ...]], ...]  # name, its record if it is one, arguments

    @property
    def arguments(self) -> list[Argument]:
        return [argument for _, _, arguments in self.parameters for argument in arguments]

    @property
    def schema(self) -> str:
        """Arguments and results, without the name."""
        letters = iter("abcdefgh")
        texts = []
        for argument in self.arguments:
            alias = f"Tensor({next(letters)}!)" if argument.mutable else "Tensor"
            texts.append(f"{argument.type.replace('Tensor', alias)} {argument.name}")
        return f"({', '.join(texts)}) -> ()"

    def flattening(self, operator: Callable[..., None]) -> Callable[..., None]:
        """`operator`, which takes flat arguments, to be called with records."""
        are_records = [record is not None for _, record, _ in self.parameters]

        def call(*parameters: Any) -> None:
            flat: list[Any] = []
            for parameter, is_record in zip(parameters, are_records, strict=True):
                if is_record:
                    flat += parameter
                else:
                    flat.append(parameter)
            operator(*flat)

        return call

    def gathering(self, function: Callable[..., None]) -> Callable[..., None]:
        """`function`, which takes records, to be called with flat arguments."""

        def call(*flat: Any) -> None:
            function(*self.gathered(flat))

        return call

    def gathered(self, flat: Sequence[Any]) -> Iterator[Any]:
        """The parameters that `flat` spells out."""
        i = 0
        for _, record, arguments in self.parameters:
            values = flat[i : i + len(arguments)]
            yield values[0] if record is None else record(*values)
            i += len(arguments)


def _declaration(name: str) -> Declaration:
    hints = get_type_hints(getattr(Operations, name), include_extras=True)
    del hints["return"]
    parameters = tuple(_parameter(parameter, hint) for parameter, hint in hints.items())
    declared = Declaration(name, parameters)
    names = [argument.name for argument in declared.arguments]
    assert len(set(names)) == len(names), f"{name} has two arguments of one name: {names}"
    return declared


def _parameter(name: str, hint: Any) -> tuple[str, type | None, tuple[Argument, ...]]:
    if inspect.isclass(hint) and issubclass(hint, tuple):
        fields = get_type_hints(hint, include_extras=True)
        return name, hint, tuple(_argument(field, inner) for field, inner in fields.items())
    return name, None, (_argument(name, hint),)


def _argument(name: str, hint: Any) -> Argument:
    role, mutable = _READ, False
    if get_origin(hint) is Annotated:
        hint, role = get_args(hint)
        mutable = True
    return Argument(name, _schema_type(hint), role, mutable)


def _schema_type(hint: Any) -> str:
    if get_origin(hint) is list:
        return f"{_schema_type(*get_args(hint))}[]"
    if get_origin(hint) in (Union, UnionType):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return f"{_schema_type(inner)}?"
    return _SCHEMA_TYPES[hint]


DECLARATIONS = {
    name: _declaration(name)
    for name in vars(Operations)
    if inspect.isfunction(vars(Operations)[name]) and name[0] != "_"
}
