"""The lines of a run as the results that `benchmarks.report` reads.

python -m benchmarks.gpu results first --out DIR    first.jsonl there -> benchmarks/results/<machine>/
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..compare import Comparison, Outcome, Workload
from ..memory import StepMemory
from ..results import Book, write
from ..rounds import Turns
from ..subjects import net
from ..variants import BY_NAME

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The lines of a run; the last may have been cut off."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def of(lines: Iterable[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["kind"] == kind]


def save(out: Path, command: str, root: Path) -> list[Path]:
    """Write every results file of a run, and beside them its lines and its summary, which say what else was seen."""
    lines = read(out / f"{command}.jsonl")
    paths = [path for book in books(lines, root) for path in book.save()]
    for line in of(lines, "results"):  # of `more`, whole files
        paths.append(root / line["folder"] / line["file"])
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        write(paths[-1], line["contents"])
    for name in (f"{command}.jsonl", f"{command}.txt"):
        if paths and (out / name).exists():
            paths.append(paths[0].parent / name)
            shutil.copyfile(out / name, paths[-1])
    return paths


def books(lines: Sequence[Line], root: Path) -> list[Book]:
    machines = [line for line in of(lines, "machine") if line.get("model")]
    if not machines:
        return []
    facts = {key: value for key, value in machines[0].items() if key not in ("kind", "at", "verdict")}
    settings = of(lines, "settings")[0]
    made = []
    for workload in dict.fromkeys(line["workload"] for line in of(lines, "turn")):
        outcomes = [line for line in of(lines, "outcome") if line.get("workload") == workload]
        first = outcomes[0]
        book = _book(root, facts, settings, first["batch"], first["suffix"])
        group = "training" if first["training"] else "inference"
        subject = net(settings["model"], settings["image"])
        work = Workload(subject, first["batch"], torch.device(facts["device"]), torch.float32, first["training"])
        book.add(group, work, comparison(outcomes, [t for t in of(lines, "turn") if t["workload"] == workload]))
        made.append(book)
    if of(lines, "operation"):
        book = _book(root, facts, settings, settings["large"])
        group = book.group("operation")
        group["ceilings"] = ceilings(lines)
        group["records"] += [_operation(line, settings["large"]) for line in of(lines, "operation")]
        if len(group["ceilings"]) == 2:
            made.append(book)
    return made


def _book(root: Path, facts: Line, settings: Line, batch: int, suffix: str = "") -> Book:
    told = {key: value for key, value in settings.items() if key not in ("kind", "at", "large", "command")} | {
        "batch": batch
    }
    setting = f"{told['model']}-{told['image']}-{batch}-{told['dtype']}{suffix}"
    return Book(root, facts, setting, told)


def comparison(outcomes: Iterable[Line], turns: Sequence[Line]) -> Comparison:
    """Of the rounds in which every variant that is timed at all, and was not lost, had its turn."""
    lost = {t["variant"]: f"{t['verdict']}: {t['why']}" for t in turns if t["verdict"] != "measured"}
    found: dict[str, Outcome] = {}
    for line in outcomes:
        memory = StepMemory(line["live"], line["peak"]) if line.get("live") is not None else None
        missing = line.get("why") if line["verdict"] == "not run" else None
        error = line.get("error") or (line.get("why") if line["verdict"] in ("dead", "hung") else None)
        error = error or lost.get(line["variant"])
        found[line["variant"]] = Outcome({}, memory, line.get("check") or {}, missing, error)
    by_round: dict[int, dict[str, dict[str, float]]] = {}
    for turn in turns:
        if not found[turn["variant"]].error:
            by_round.setdefault(turn["round"], {})[turn["variant"]] = turn["seconds"]
    timed = list(by_round.get(0, ()))
    for name, outcome in found.items():
        if name not in timed and not outcome.error and not outcome.missing:
            found[name] = outcome._replace(missing="no time for its turn")
    whole = [taken for _, taken in sorted(by_round.items()) if set(taken) == set(timed)]
    for name in timed if whole else ():
        phases = whole[0][name]
        seconds = {phase: [taken[name][phase] for taken in whole] for phase in phases}
        found[name] = found[name]._replace(seconds=seconds)
    return Comparison(found, Turns({}, len(by_round) - len(whole), 0.0))


def ceilings(lines: Sequence[Line]) -> dict[str, float]:
    return {line["what"]: line["per_s"] for line in of(lines, "ceiling") if line["verdict"] == "measured"}


def _operation(line: Line, batch: int) -> Line:
    backend = line["backend"]
    return {
        "case": line["operation"],
        "phase": "operation",
        "variant": backend,
        "label": BY_NAME[backend].label,
        "family": "ours",
        "batch": batch,
        "calls": line.get("calls"),
        "bytes": line.get("bytes"),
        "flops": line.get("flops"),
        "seconds": line.get("seconds", []),
        "check": {"results": line["check"]} if line.get("check") else {},
        "missing": line.get("why") if line["verdict"] == "not run" else None,
        "error": line.get("error") or (line.get("why") if line["verdict"] in ("dead", "hung") else None),
        "dropped": line.get("dropped"),
        "others": line.get("others"),
    }
