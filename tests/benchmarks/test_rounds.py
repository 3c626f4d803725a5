"""The statistics, and which rounds count."""

import itertools

import pytest
import torch

from benchmarks.rounds import DISTURBED, OtherProcesses, Stopwatch, lasting, ratio, spread, take_turns


def turns(loads, rounds, seconds=0.0):
    """Two variants, in rounds during which others keep so many cores busy (the first look comes before the rounds). A
    first round, with durations 1 and 2, warms up."""
    order = []
    count = itertools.count(1)

    def run(name):
        order.append(name)
        return {"step": float(next(count))}

    looks = iter([0.0, *loads])
    result = take_turns({"a": lambda: run("a"), "b": lambda: run("b")}, rounds, seconds, lambda: next(looks))
    return result, order


def test_variants_alternate():
    result, order = turns([0.0] * 3, 3)
    assert order == ["a", "b"] * 4
    assert result.seconds == {"a": {"step": [3, 5, 7]}, "b": {"step": [4, 6, 8]}}
    assert result.dropped == 0


def test_a_disturbed_round_is_dropped_for_both_and_made_up_for():
    result, _ = turns([0.0, 2 * DISTURBED, 0.0, 0.0], 3)
    assert result.seconds == {"a": {"step": [3, 7, 9]}, "b": {"step": [4, 8, 10]}}
    assert result.dropped == 1
    assert result.others <= DISTURBED


def test_a_machine_that_is_never_quiet_gives_its_least_disturbed_rounds_and_says_so():
    result, _ = turns([0.9, 0.3, 0.8, 0.0, 0.7, 0.6], 3)
    assert result.seconds["a"]["step"] == [5, 9, 13]
    assert result.dropped == 3
    assert result.others == pytest.approx(0.6)


def test_quick_rounds_go_on_for_a_while():
    result, _ = turns([0.0] * 100, 3, seconds=60.0)
    assert len(result.seconds["a"]["step"]) == 12


def test_the_work_of_another_process_is_others_and_ours_is_not(monkeypatch):
    looks = iter([(0.0, 10.0, 3.0), (2.0, 14.0, 5.0), (4.0, 18.0, 9.0)])  # wall clock, all cores' work, our own
    monkeypatch.setattr(OtherProcesses, "_now", staticmethod(lambda: next(looks)))
    others = OtherProcesses()
    assert others.cores() == 1.0
    assert others.cores() == 0.0


def test_spread_and_ratio():
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 1.8, 4.2)
    assert spread([7.0]) == (7.0, 7.0, 7.0)
    # Pair by pair ours is always twice as fast, though the machine was slower in the second half.
    theirs, ours = [2.0, 2.0, 8.0, 8.0, 8.0], [1.0, 1.0, 4.0, 4.0, 4.0]
    assert ratio(theirs, ours) == (2.0, 2.0, 2.0)


def test_stopwatch_gives_the_time_from_mark_to_mark():
    watch = Stopwatch(torch.device("cpu"))
    watch.start()
    watch.mark()
    watch.mark()
    first, second = watch.seconds()
    assert first >= 0
    assert second >= 0
    assert watch.seconds() == []


def test_a_short_step_lasts_and_counts_with_its_mean():
    durations = iter([{"forward": 3.0, "forward+backward": 4.0}, {"forward": 1.0, "forward+backward": 2.0}])
    assert lasting(lambda: next(durations), least=5.0) == {"forward": 2.0, "forward+backward": 3.0}
    assert lasting(lambda: {"inference": 7.0}, least=5.0) == {"inference": 7.0}
