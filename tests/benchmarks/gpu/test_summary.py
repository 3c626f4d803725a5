"""From lines written by hand: which rounds count, and every figure of the summary is one of theirs."""

from benchmarks.gpu import summary
from benchmarks.gpu.collect import comparison


def outcome(variant, workload="training 256", **other):
    made = {"kind": "outcome", "workload": workload, "training": True, "batch": 256, "suffix": "", "variant": variant}
    return made | {"verdict": "right", "check": {}, "why": None, "error": None, "live": 256e7, "peak": 512e7} | other


def turn(variant, number, seconds, workload="training 256", **other):
    made = {"kind": "turn", "workload": workload, "variant": variant, "round": number, "batch": 256}
    return made | {"verdict": "measured", "seconds": {"forward+backward": seconds}} | other


OUTCOMES = [outcome("torchvision"), outcome("native"), outcome("triton", verdict="wrong", error="gradients err")]


def test_only_whole_rounds_count():
    turns = [turn("torchvision", 0, 2.0), turn("native", 0, 1.0), turn("torchvision", 1, 3.0)]
    made = comparison(OUTCOMES, turns)
    assert made.outcomes["torchvision"].seconds == {"forward+backward": [2.0]}
    assert made.outcomes["native"].seconds == {"forward+backward": [1.0]}
    assert made.outcomes["triton"].error == "gradients err"
    assert made.turns.dropped == 1


def test_a_variant_that_is_lost_does_not_cost_the_rounds_of_the_others():
    turns = [turn("torchvision", 0, 2.0), turn("native", 0, 1.0), turn("torchvision", 1, 3.0)]
    turns.insert(2, turn("native", 1, None, verdict="dead", why="killed by SIGSEGV"))
    made = comparison(OUTCOMES, turns)
    assert made.outcomes["torchvision"].seconds == {"forward+backward": [2.0, 3.0]}
    assert made.outcomes["native"].seconds == {}
    assert made.outcomes["native"].error == "dead: killed by SIGSEGV"


def test_a_variant_without_a_turn_had_no_time():
    made = comparison(OUTCOMES, [turn("torchvision", 0, 2.0)])
    assert made.outcomes["torchvision"].seconds == {"forward+backward": [2.0]}
    assert made.outcomes["native"].missing == "no time for its turn"


def smoke(backend, operation, verdict, **other):
    made = {"kind": "smoke", "backend": backend, "operation": operation, "dtype": "bfloat16", "verdict": verdict}
    return made | other


def launch(microseconds):
    times = {"Duration": f"{microseconds} us", "DRAM Throughput": f"{microseconds} %"}
    return {"kernel": "k", "grid": "(1, 1, 1)"} | times


LINES = [
    {"kind": "library", "verdict": "right", "why": "brought along, of commit abc"},
    {"kind": "machine", "model": "Card X", "torch": "2.11.0", "commit": "abc", "date": "2026-01-02"},
    {"kind": "variants", "verdict": "right", "count": 290, "seconds": 31.0},
    smoke("native", "head_fwd", "right"),
    smoke("native", "head_fwd", "dead", why="killed by SIGABRT", tail="CUDA error: an illegal memory access\nat 0x0"),
    smoke("triton", "head_fwd", "wrong", error="errs by 1.0e-01, allowed 1.0e-03"),
    {"kind": "model", "net": "densenet121", "backend": "native", "what": "graph", "verdict": "right"},
    {"kind": "sanitizer", "tool": "racecheck", "backend": "triton", "verdict": "right", "why": "0 hazards"},
    {"kind": "ceiling", "what": "copy_bytes_per_s", "verdict": "measured", "per_s": 4e12},
    *OUTCOMES,
    *(turn(v, i, s) for i in range(3) for v, s in (("torchvision", 0.2), ("native", 0.1))),
    {"kind": "operation", "backend": "native", "operation": "head_fwd", "verdict": "measured", "seconds": [0.002]}
    | {"bytes": 4_000_000_000},
    {"kind": "ncu", "backend": "native", "verdict": "measured", "kernels": [launch(5), launch(9)]},
    {"kind": "step", "step": "memory", "verdict": "not run", "why": "no time", "seconds": 0.0},
    {"kind": "step", "step": "profile", "verdict": "failed", "error": "ValueError: x", "seconds": 3.0},
]


def test_the_summary_says_what_works_how_fast_and_what_to_mend():
    told = summary.text(LINES, 530.0, 512.0)
    rows = [" ".join(line.split()) for line in told.splitlines()]
    assert rows[0].startswith("Card X, torch 2.11.0, commit abc, 2026-01-02; 512 s of 530; library brought along")
    assert rows[0].endswith("290 Triton variants in 31 s")
    assert "steps: memory not run 0 s, profile failed 3 s" in rows
    assert "head_fwd 1 right, 1 dead 2.00, 50% 1 wrong -" in rows
    assert "densenet121 native: graph right" in rows
    assert "compute-sanitizer: racecheck triton right (0 hazards)" in rows
    assert "torchvision 1280 (1.00x)" in rows
    assert "densenet_fast native 2560 (2.00x)" in rows
    assert "kept/peak MB per image, training 256: torchvision 10.0/20.0, native 10.0/20.0, triton 10.0/20.0" in rows
    assert "native k 9 us 9 % - -" in rows
    assert rows.index("no time: 1 memory") > rows.index("not run:")
    assert rows[rows.index("to mend:") + 1 :] == [
        "dead: smoke native head_fwd bfloat16: killed by SIGABRT | CUDA error: an illegal memory access",
        "wrong: smoke triton head_fwd bfloat16: errs by 1.0e-01, allowed 1.0e-03",
        "wrong: outcome triton training 256: gradients err",
        "failed: profile: ValueError: x",
    ]


def test_a_summary_without_faults_says_so():
    assert summary.text(LINES[:3], 530.0, 1.0).endswith("to mend: nothing was found\n")
