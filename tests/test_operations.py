"""The contract, operation by operation, on the eager backend: values, schemas, and what is not theirs to touch."""

import inspect

import pytest
import torch

from densenet_fast import backends
from densenet_fast.contract import DECLARATIONS

from . import reference
from .blocks import surroundings
from .calls import NAMES, Geometry, errors, make
from .opcheck import opcheck

CPU = torch.device("cpu")
SIZE = Geometry(2, 5, 3, 12, 16, 4)
LARGE = Geometry(8, 40, 40, 64, 64, 4)  # of which backwards take a part of the batch after the other
VARIANTS = [
    *((name, {}) for name in NAMES),
    *((name, {"affine": False}) for name in NAMES),
    *((name, {"batch": False}) for name in NAMES if not name.startswith(("channel", "bn", "update"))),
    *((f"{kind}_{way}", {"drop_rate": 0.3}) for kind in ("conv3x3", "plain") for way in ("fwd", "bwd")),
]


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def eager():
    return backends.operations("eager", CPU)


variants = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain"
)


@variants
def test_errors(eager, name, options, dtype):
    check_errors(eager, name, SIZE, dtype, seeds=5, **options)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_bwd")])
def test_errors_piece_by_piece(eager, name):
    check_errors(eager, name, LARGE, torch.float32, seeds=3)


def check_errors(eager, name, size, dtype, seeds, **options):
    """In float64 none; in another dtype at most twice those of PyTorch's own layers, the median of some seeds."""
    found = {}
    for _ in range(seeds):
        call = make(name, size, dtype, **options)
        exact = call.copy(torch.float64).on(reference).results()
        got = call.copy().on(eager).results()
        ours, stock = (errors(values, exact) for values in (got, call.copy().on(reference).results()))
        for result in exact:
            found.setdefault(result, []).append((ours[result], stock[result]))
    for result, of_seeds in found.items():
        our, their = (sorted(side)[seeds // 2] for side in zip(*of_seeds, strict=True))
        bound = 1e-12 if dtype == torch.float64 else 2 * their + torch.finfo(got[result].dtype).eps
        assert our <= bound, f"{result}: {our:.2e}, stock {their:.2e}"


@pytest.mark.parametrize("name", NAMES)
def test_schema_and_fake_tell_the_truth(eager, name, dtype):
    call = make(name, SIZE, dtype)
    operator = getattr(torch.ops.densenet_fast, call.operation).eager
    opcheck(operator, [value for _, value in call.arguments()])


@variants
def test_only_what_is_told_is_touched(eager, name, options, dtype):
    """All around what is given is NaN: none may be read or change, nor what is only read, nor any element of a result
    that the operation leaves as it was."""
    call = make(name, SIZE, dtype, **options)
    before, exact = dict(call.named()), dict(call.copy(torch.float64).on(reference).named())
    for result, argument, tensor in call.copy().on(eager).tensors():
        assert surroundings(tensor).isnan().all(), result
        if argument.role.read or argument.role.written:
            left = exact[result] == before[result].double()
            assert torch.equal(tensor[left], before[result][left]), result
            assert argument.role.written or left.all(), result
            assert result == "z" or not tensor.isnan().any(), result


def test_what_may_be_written_over_its_operand(eager, dtype):
    call = make("bn_bwd_apply", SIZE, dtype)
    expected, found = call.copy().on(eager).results(), call.copy().in_place().on(eager)
    assert torch.equal(found.results()["dx"], expected["dx"])
    assert all(surroundings(tensor).isnan().all() for tensor in dict(found.named()).values())


@pytest.mark.parametrize("name", DECLARATIONS)
def test_eager_functions_take_what_is_declared(name):
    """And have defaults for what stage/mixed.py asks of them besides."""
    from densenet_fast.backends import eager

    declared = [parameter for parameter, *_ in DECLARATIONS[name].parameters]
    taken = inspect.signature(getattr(eager, name)).parameters
    assert list(taken)[: len(declared)] == declared
    assert all(parameter.default is not parameter.empty for parameter in list(taken.values())[len(declared) :])


def test_a_layout_that_would_need_a_copy_is_an_error(eager):
    """The contract's activations are NHWC; the functional layer sees to it, so an operation may insist."""
    call = make("conv1x1_fwd", SIZE)
    with pytest.raises(RuntimeError, match="view"):
        call.changed(lambda argument, t: t.contiguous() if argument == "x" else t).on(eager)


def test_running_statistics_take_the_unbiased_variance(eager):
    x = torch.randn(7, 3, dtype=torch.float64)
    module = torch.nn.BatchNorm1d(3, momentum=0.3, dtype=torch.float64)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    counter = torch.tensor(0)
    module(x)
    batch_var, batch_mean = torch.var_mean(x, 0, correction=0)
    eager.update_running_stats([mean], [var], [counter], torch.stack([batch_mean, batch_var]), [0], 7, [0.3])
    torch.testing.assert_close((mean, var), (module.running_mean, module.running_var))
    assert counter == module.num_batches_tracked
