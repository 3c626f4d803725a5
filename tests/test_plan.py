"""The planner: `plan.fit` and `densenet-fast plan` against bytes that PyTorch's allocator counts."""

import json
from itertools import product

import pytest
import torch
import torchvision.models as stock_models

from benchmarks.memory import measure
from densenet_fast import DenseNet, cli, plan
from densenet_fast.memory import Step
from densenet_fast.plan import stock
from densenet_fast.plan.floor import floor
from densenet_fast.plan.units import parse_bytes, text_of_bytes

from .rows import some

NETS = {
    "small images": ({"growth_rate": 12, "block_config": (8, 8, 8)}, 32, 4),
    "large images": ({"growth_rate": 32, "block_config": (4, 6, 8, 4), "num_init_features": 64}, 96, 2),
    "two blocks": ({"growth_rate": 16, "block_config": (6, 6), "bn_size": 2, "compression": 1.0}, 24, 8),
}


def all_bytes(model: DenseNet, x: torch.Tensor) -> int:
    there = [x, *model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in there) + measure(model, x).peak


def possible(step: Step, always: int) -> dict[tuple[bool, ...], tuple[int, int]]:
    """What a step needs and recomputes, by which of the blocks are efficient; a stem goes with the first."""
    found = {}
    stems = sum(stage.consumer == "stem" for stage in step.stages)
    for chosen in product((False, True), repeat=len(step.stages) - stems):
        of_stages = [chosen[0]] * stems + list(chosen)
        again = sum(stage.recomputed for stage, e in zip(step.stages, of_stages, strict=True) if e)
        found[chosen] = plan.needed(step, "eager", always, of_stages), again
    return found


def undominated(choices: dict[tuple[bool, ...], tuple[int, int]]) -> list[int]:
    """What those choices need of which no other both needs and recomputes less, in order."""
    kept = [c for c in choices.values() if not any(o != c and o[0] <= c[0] and o[1] <= c[1] for o in choices.values())]
    return sorted(needed for needed, _ in kept)


BUDGETS = {  # of the bytes that the choices need, and of those of them that are worth their recomputation
    "a third of the way": lambda every, worth: round(min(every) + 0.3 * (max(every) - min(every))),
    "most of the way": lambda every, worth: round(min(every) + 0.8 * (max(every) - min(every))),
    "just a small choice's": lambda every, worth: worth[1],
    "just a large choice's": lambda every, worth: worth[-2],
}


@pytest.mark.parametrize(
    ("name", "budget"), some(product(NETS, BUDGETS), always=lambda row: (row[0] != "two blocks") == ("just" in row[1]))
)
def test_fit_is_the_cheapest_choice_and_fits(name, budget):
    """Measured it is under the budget, and within 5 % of it where a choice needs just that; else no choice that
    recomputes less fits."""
    config, side, batch = NETS[name]
    model = DenseNet(**config, backend="eager")
    x = torch.randn(batch, 3, side, side)
    step = Step.of(model, x.shape)
    choices = possible(step, plan.resident(model, step))
    is_just = budget.startswith("just")
    budget = BUDGETS[budget]([needed for needed, _ in choices.values()], undominated(choices))

    found = plan.fit(model, side, batch, budget)
    blocks = [m for n, m in model.features.named_children() if n.startswith("denseblock")]
    chosen = tuple(block.efficient for block in blocks)
    assert found.efficient == tuple(f"denseblock{i}" for i, e in enumerate(chosen, 1) if e)
    assert (found.bytes, found.recomputed) == choices[chosen]
    assert found.recomputed == min(again for needed, again in choices.values() if needed <= budget)
    measured = all_bytes(model, x)
    assert 0.97 * found.bytes <= measured <= found.bytes <= budget
    assert measured >= 0.95 * budget or not is_just


def test_frozen_layers_have_nothing_to_recompute():
    model = DenseNet(8, (4, 4), backend="eager").freeze("denseblock1")
    step = Step.of(model, (2, 3, 32, 32))
    budget = plan.needed(step, "eager", plan.resident(model, step), [True, True])
    assert plan.fit(model, 32, 2, budget).efficient in ((), ("denseblock2",))
    assert not step.stages[0].can_recompute
    assert step.stages[1].can_recompute


def test_where_nothing_fits_it_says_what_would():
    model = DenseNet(block_config=(3, 3), backend="eager")
    with pytest.raises(
        ValueError, match=r"got 2 MB, expected at least .* MB for a batch of 64 .*; a batch of (\d+)"
    ) as error:
        plan.fit(model, 32, 64, "2MB")
    assert not model.features.denseblock1.efficient
    largest = int(str(error.value).split("batch of ")[-1].split()[0])
    assert plan.largest_batch(model, 32, "2MB") == largest
    plan.fit(model, 32, largest, "2MB")
    with pytest.raises(ValueError, match="smaller images"):
        plan.fit(model, 32, largest + 1, "200kB")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_torchvision_keeps(checkpointed):
    theirs = stock_models.DenseNet(16, (3, 4), 24, num_classes=10, memory_efficient=checkpointed)
    ours = DenseNet(16, (3, 4), num_init_features=24, small_inputs=False)
    x = torch.randn(4, 3, 64, 64)
    found, step = measure(theirs, x), Step.of(ours, x.shape)
    assert found.live == stock.kept(step, checkpointed)
    assert stock.peak(step, checkpointed) == pytest.approx(found.peak, rel=0.08)


def test_floor_grows_with_the_batch_and_counts_what_a_layer_reads():
    """A block of one layer without bottleneck: forward x and y, backward dy, y, x, and dx read and written."""
    nets = [DenseNet(4, (layers,), bn_size=None, num_init_features=8, num_classes=0) for layers in (1, 2)]
    one, two = (floor(net, (2, 3, 16, 16), torch.float32) for net in nets)
    pixels, c, k = 2 * 16 * 16, 12, 4
    of_second = 4 * pixels * ((c + k) + (2 * k + 3 * c))
    of_buffer = 4 * pixels * k * 3  # four channels more that the head reads forward and backward, and writes
    of_weight = 4 * 3 * 9 * k * c  # read twice, its gradient written
    assert two - one == pytest.approx(of_second + of_buffer + of_weight, rel=0.01)


@pytest.mark.parametrize(
    ("text", "count"), [("24GiB", 24 * 2**30), ("24 gb", 24e9), (5e9, 5e9), ("1.5M", 1.5e6), ("700", 700)]
)
def test_bytes_as_people_write_them(text, count):
    assert parse_bytes(text) == count
    assert parse_bytes(text_of_bytes(count)) == pytest.approx(count, rel=0.005)


@pytest.mark.parametrize("text", ["", "many", "24 apples", "-3GB", "0", "1.2.3GB", "1e400", "9300000T"])
def test_what_are_no_bytes(text):
    with pytest.raises(ValueError, match=r"^got .*expected bytes"):
        parse_bytes(text)
    with pytest.raises(ValueError, match=r"^memory: got .*expected bytes"):
        plan.fit(DenseNet(block_config=(3, 3)), 32, 1, text)


def test_another_library_s_model_is_refused_in_a_sentence():
    theirs = stock_models.DenseNet(16, (3, 4), 24, num_classes=10)
    for asked in (lambda: plan.fit(theirs, 32, 1, "1GB"), lambda: plan.largest_batch(theirs, 32, "1GB")):
        with pytest.raises(ValueError, match=r"model: got DenseNet, expected a densenet_fast\.DenseNet"):
            asked()


def test_the_command_s_json_is_the_model(capsys, tmp_path):
    picture = tmp_path / "plan.png"
    asked = f"densenet_bc_22_4 --image 16 --batch 4 --memory 4MB --bandwidth 100GB --json --picture {picture}"
    assert cli.main(["plan", *asked.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    model = DenseNet(4, (3, 3, 3), num_init_features=8)
    step = Step.of(model, (4, 3, 16, 16))
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["ways"]["densenet_fast"]["kept"] == step.kept([False] * 3)
    assert found["ways"]["densenet_fast, efficient"]["kept"] == step.kept([True] * 3)
    moved = floor(model, (4, 3, 16, 16), torch.float32)
    assert found["floor"] == {"bytes": moved, "seconds": moved / 100e9, "images_per_second": 4 / (moved / 100e9)}
    largest = found["ways"]["densenet_fast, efficient"]["largest_batch"]
    assert plan.largest_batch(model, 16, "4MB", states=1) == largest > 4
    assert found["fit"]["efficient"] == []
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ("1kB", "1 kB: not even one image fits, with every block efficient"),
        ("2 mb", "2 MB: a batch of 64 does not fit; at most "),
        ("1E9", " MB with no block efficient, 0.0% of a step's multiply-adds again"),
    ],
)
def test_budgets_that_are_small_or_oddly_written(memory, told, capsys):
    assert cli.main(["plan", "densenet_bc_22_4", "--image=16", f"--memory={memory}"]) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("densenet_bc_101_12", 2, "argument net: got 'densenet_bc_101_12' of depth 101, expected"),
        ("densenet121 --memory lots", 2, "argument --memory: got 'lots', expected bytes"),
        ("densenet121 --bandwidth lots", 2, "argument --bandwidth: got 'lots', expected bytes"),
        ("densenet121 --batch 0", 2, "got '0', expected a number of at least 1"),
        ("densenet121 --gpu h900", 2, "invalid choice: 'h900'"),
        ("densenet_bc_22_4 --picture none/x.png", 1, "--picture: got none/x.png, which cannot be drawn"),
        ("densenet_bc_22_4 --picture /", 1, "--picture: got '/', expected a file"),
        ("densenet_bc_22_4 --picture x.foo", 1, "--picture: got x.foo, which cannot be drawn"),
        ("densenet121 --image 8", 1, "image: got a side of 8, which leaves no pixel"),
    ],
)
def test_what_cannot_be_planned(arguments, status, message, capsys):
    try:
        found = cli.main(["plan", *arguments.split()])
    except SystemExit as exit_:
        found = exit_.code
    told = capsys.readouterr()
    assert (found, told.out) == (status, "")
    assert message in told.err
    assert told.err.count("\n") == 1


def test_a_backend_by_name_is_that_of_the_model_or_of_another_machine():
    model = DenseNet(4, (2, 2), backend="eager")
    needs = [plan.backend_of(model, torch.float32, name) for name in (None, "eager", "triton")]
    assert needs == ["eager", "eager", "triton"]
    assert plan.backend_of(model, torch.float64, "auto") == "eager"
    for asked, dtype, told in [
        ("foo", torch.float32, "unknown backend: got 'foo'"),
        ("plain", torch.float32, "backend: got the plain layers"),
        ("eager", torch.int8, "dtype: got torch.int8"),
    ]:
        with pytest.raises(ValueError, match=told):
            plan.fit(model, 32, 2, "1GB", backend=asked, dtype=dtype)
