"""What is derived from the declaration of operations."""

from pathlib import Path

import pytest

from densenet_fast.contract import DECLARATIONS, Norm, NormGradient, cpp
from densenet_fast.contract.records import Role


def test_schemas_say_what_is_written():
    assert DECLARATIONS["stem_bwd"].schema == (
        "(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? gamma, Tensor? beta, float eps, Tensor(a!) dx,"
        " Tensor(b!) dgamma, Tensor(c!) dbeta, Tensor(d!)? correction) -> ()"
    )
    assert "Tensor(c!)?[] gradients" in DECLARATIONS["block_bwd"].schema


def test_records_are_spelled_out_and_gathered_again():
    declared = DECLARATIONS["stem_bwd"]
    norm, dnorm = Norm("mean", "var", "gamma", None, 1e-5), NormGradient("dgamma", "dbeta", None)
    flat, gathered = [], []
    declared.flattening(lambda *args: flat.extend(args))("dy", "x", norm, "dx", dnorm)
    assert flat == ["dy", "x", "mean", "var", "gamma", None, 1e-5, "dx", "dgamma", "dbeta", None]
    declared.gathering(lambda *args: gathered.extend(args))(*flat)
    assert gathered == ["dy", "x", norm, "dx", dnorm]


@pytest.mark.parametrize(
    ("operation", "argument", "role"),
    [
        ("stem_bwd", "dx", Role(read=False, written=True)),
        ("stem_bwd", "correction", Role(read=True, written=True)),
        ("block_bwd", "u", Role(read=False, written=False)),
        ("block_fwd", "tensors", Role(read=True, written=False)),
    ],
)
def test_roles(operation: str, argument: str, role: Role):
    (found,) = (each.role for each in DECLARATIONS[operation].arguments if each.name == argument)
    assert found == role


def test_every_argument_of_a_schema_has_a_role():
    for declared in DECLARATIONS.values():
        assert declared.schema.count("!") == sum(argument.mutable for argument in declared.arguments)


def test_the_structures_of_the_library_are_those_declared():
    committed = (Path(__file__).parents[1] / "csrc/contract.h").read_text()
    assert cpp.header() == committed, "run `python -m densenet_fast.contract.cpp > csrc/contract.h`"
