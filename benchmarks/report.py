"""Tables and pictures from the raw results: `python -m benchmarks.report [--results benchmarks/results] [--check]`.

Writes docs/benchmarks.md with every table and picture, docs/*.png, and the sections between `<!-- benchmarks -->` and
`<!-- /benchmarks -->` of the README, which has one of each, and of docs/feature_reuse.md. Figures whose kernels have
changed since they were measured carry a dagger. `--check` writes nothing and fails if the files are not what the
results make.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import machine, pictures, results
from .architectures import architectures
from .figures import megabytes, ms, number, times
from .results import Record
from .rounds import DISTURBED, ratio, spread
from .summary import is_default, is_same_setting, summary
from .table import Table
from .variants import BASELINE, BY_NAME

START, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
Contents = dict[str, Any]

TITLES = {
    "training": "Training step",
    "inference": "Inference",
    "largest-batch": "Largest batch of a training step in 24 GB",
    "block-training": "Dense blocks, training",
    "block-inference": "Dense blocks, inference",
    "shapes": "Blocks of four layers over shapes",
    "operation": "Operations",
    "depth": "Against depth: DenseNet-BC, k=12, 32x32",
    "growth": "Against growth rate: DenseNet-BC, 40 layers, 32x32",
    "batch": "Against the batch",
}
LOSSES = "Where the best of ours loses: "


def tables(contents: Contents) -> list[Table]:
    """The group's records as tables."""
    group = contents["group"]
    if group == "operation":
        return [_operations(contents)]
    if group == "largest-batch":
        rows = [(r["label"], str(r["largest"])) for r in contents["records"] if "largest" in r]
        return [Table(("", "images"), rows)]
    if group == "batch":
        return [_curve(contents, "images/s")]
    if group in ("depth", "growth"):
        return [_curve(contents, what) for what in ("kept MB/image", "peak MB/image", "images/s")]
    if group == "shapes":
        return [_shapes(contents)]
    return [_turns(contents)]


def _turns(contents: Contents) -> Table:
    """One line for each variant of each case; ratios are to torchvision channels_last, pair by pair."""
    several = contents["group"].startswith("block")
    rows = []
    comparisons = by_comparison(contents["records"])
    for (case, phase), lines in comparisons.items():
        if phase == "forward":
            continue
        stock = _seconds(lines, BASELINE)
        for record in lines:
            if not record["seconds"]:
                continue
            time = spread(record["seconds"])
            forward = _seconds(comparisons.get((case, "forward"), []), record["variant"])
            rows.append(
                [
                    *([record["case"]] if several else []),
                    record["label"],
                    number(record["batch"] / time.median),
                    *([ms(spread(forward).median) if forward else "-"] if phase != "inference" else []),
                    f"{ms(time.median)} ({ms(time.p20)}-{ms(time.p80)})",
                    times(ratio(stock, record["seconds"])) if stock else "-",
                    *([megabytes(record, "live"), megabytes(record, "peak")] if phase != "inference" else []),
                ]
            )
    inference = all(r["phase"] == "inference" for r in contents["records"])
    header = [
        *(["block"] if several else []),
        "",
        "images/s",
        *([] if inference else ["forward ms"]),
        "ms (p20-p80)" if inference else "step ms (p20-p80)",
        "times torchvision (p20-p80)",
        *([] if inference else ["kept MB/image", "peak MB/image"]),
    ]
    return Table(header, rows)


def _shapes(contents: Contents) -> Table:
    """One line for each shape: how many times as fast as torchvision's better layout, and as the eager backend."""
    rows = []
    for (case, phase), lines in by_comparison(contents["records"]).items():
        stock = min(
            (s for v in (BASELINE, "torchvision-nchw") if (s := _seconds(lines, v))), key=lambda s: spread(s)[0]
        )
        for record in lines:
            if record["seconds"] and record["variant"] in ("native", "triton"):
                eager = _seconds(lines, "eager")
                rows.append(
                    [
                        case.replace("batch", "N"),
                        phase,
                        record["variant"],
                        ms(spread(record["seconds"]).median),
                        times(ratio(stock, record["seconds"])),
                        times(ratio(eager, record["seconds"])) if eager else "-",
                    ]
                )
    return Table(("shape", "phase", "backend", "ms", "times torchvision", "times the eager backend"), rows)


def _operations(contents: Contents) -> Table:
    ceilings = contents["ceilings"]
    rows = []
    for record in contents["records"]:
        if record["seconds"]:
            seconds = spread(record["seconds"]).median
            rate = record["bytes"] / seconds
            rows.append(
                [
                    record["case"],
                    record["variant"],
                    str(record["calls"]),
                    ms(seconds),
                    f"{record['bytes'] / 1e6:.0f}",
                    f"{rate / 1e9:.1f}",
                    f"{rate / ceilings['copy_bytes_per_s']:.0%}",
                    f"{record['flops'] / seconds / 1e9:.0f}" if record["flops"] else "-",
                    f"{record['flops'] / seconds / ceilings['matmul_flops_per_s']:.0%}" if record["flops"] else "-",
                ]
            )
    header = ("operation", "backend", "calls", "ms", "MB", "GB/s", "of copy", "GFLOP/s", "of matmul")
    return Table(header, rows)


def _curve(contents: Contents, what: str) -> Table:
    """A line for each variant, a column for each point."""
    points = sorted({r["x"] for r in contents["records"] if r["seconds"]})

    def value(record: Record | None) -> str:
        if record is None:
            return "-"
        if what == "images/s":
            return number(record["batch"] / spread(record["seconds"]).median)
        return megabytes(record, what.split()[0].replace("kept", "live"))

    rows = [[label, *(value(curve.get(x)) for x in points)] for label, curve in curves_of(contents).items()]
    return Table([f"{what}, {contents['group']}", *map(str, points)], rows)


def curves_of(contents: Contents) -> dict[str, dict[float, Record]]:
    """By variant's label, its measured training steps by x."""
    curves: dict[str, dict[float, Record]] = defaultdict(dict)
    for record in contents["records"]:
        if record["seconds"] and record["phase"] == "forward+backward":
            curves[record["label"]][record["x"]] = record
    return dict(curves)


def by_comparison(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records that took turns with each other, by case with its batch, and phase."""
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        batch = f", batch {record['batch']}" if "batch" in record else ""
        found[record["case"] + batch, record["phase"]].append(record)
    return dict(found)


def losses(contents: Contents) -> list[str]:
    """Where a peer is ahead of the best of ours, as clauses: whole nets one by one, everything else by its worst case.

    Operations have the eager backend for a peer. Of another net than a DenseNet only the images per second count.
    """
    comparisons = {where: lines for where, lines in by_comparison(contents["records"]).items() if where[1] != "forward"}
    behind = []  # (how many times as fast, clause, comparison)
    for (case, phase), lines in comparisons.items():
        ours = [r for r in lines if r["family"] == "ours" and r.get("seconds")]
        peers = [r for r in lines if r["family"] != "ours" and r.get("seconds")]
        if contents["group"] == "operation":
            peers, ours = [r for r in ours if r["variant"] == "eager"], [r for r in ours if r["variant"] != "eager"]
        if ours and peers:
            best = min(ours, key=lambda r: spread(r["seconds"]).median)
            for peer in peers:
                ahead = ratio(best["seconds"], peer["seconds"])
                if ahead.median > 1:
                    clause = f"{peer['label']} is {times(ahead)} times as fast as {best['label']} ({case}, {phase})"
                    behind.append((ahead.median, clause, (case, phase)))
        least = min((r["peak"] for r in ours if r.get("peak")), default=0)
        for r in peers:
            if r["family"] == "stock" and r.get("peak") and r["peak"] < least:
                clause = f"{r['peak'] / least:.2f} of our peak memory is enough for {r['label']} ({case})"
                behind.append((least / r["peak"], clause, (case, phase)))
    if contents["group"] in ("training", "inference") or not behind:
        return [clause for _, clause, _ in behind]
    count = f"in {len({where for *_, where in behind})} of {len(comparisons)} comparisons"
    return [f"{TITLES[contents['group']]}: {count}, at worst {max(behind)[1]}"]


def notes(contents: Contents) -> list[str]:
    """What failed, what could not run and why, and how quiet the machine was."""
    missing: dict[str, list[str]] = defaultdict(list)
    for record in contents["records"]:
        if record.get("missing") and record["variant"] not in missing[record["missing"]]:
            missing[record["missing"]].append(record["variant"])
    reasons = [f"{', '.join(names)} ({reason})" for reason, names in missing.items()]
    if contents["group"] in ("training", "inference") and BY_NAME.keys() - {r["variant"] for r in contents["records"]}:
        reasons.append("what --peers did not ask for")
    found = [f"Not measured: {'; '.join(reasons)}."] if reasons else []
    comparisons = by_comparison(contents["records"]).items()
    dropped = sum(lines[0].get("dropped") or 0 for (_, phase), lines in comparisons if phase != "forward")
    if dropped:
        found.append(f"Rounds dropped because other processes kept more than {DISTURBED} of a core busy: {dropped}.")
    return [*warnings(contents), *found]


def warnings(contents: Contents) -> list[str]:
    """What a reader of the figures must know: failures, and a machine that was not quiet."""
    found = [
        f"FAILED: {record['label']} ({record['case']}): {record['error']}"
        for record in contents["records"]
        if record.get("error")
    ]
    others = max((record.get("others") or 0.0 for record in contents["records"]), default=0.0)
    if others > DISTURBED:
        found.append(f"NOT A QUIET MACHINE: up to {others:.2f} cores were kept busy by others in rounds that count.")
    return list(dict.fromkeys(found))


def caption(contents: Contents) -> str:
    """The machine line: everything that may explain a figure."""
    facts, settings = contents["machine"], contents["settings"]
    versions = ", ".join(
        f"{name} {facts[name]}" for name in ("torch", "torchvision", "timm", "triton") if facts.get(name)
    )
    of_cpu = [f"{facts['threads']} threads", facts.get("instructions")]  # which old results do not tell
    place = ", ".join([facts["model"], *([] if facts["device"] == "cuda" else filter(None, of_cpu))])
    allocator = ", glibc's default allocator" if settings["allocator"] == "default" else ""
    clocks = f", {facts['clocks']}" if facts.get("clocks") else ""
    return (
        f"{settings['model']}, {settings['image']}x{settings['image']}, batch {settings['batch']}, "
        f"{settings['dtype']}{allocator}; {place}{clocks}, load {facts['load']}, python {facts['python']}, {versions}, "
        f"commit {facts['commit']}, {facts['date']}{_stale(facts)}"
    )


def _stale(facts: dict[str, Any]) -> str:
    changed = machine.changed_since(facts["commit"], facts["device"])
    if changed is None:
        return "; unknown whether the kernels have changed since"
    return "; † the kernels have changed since" if changed else ""


def text(contents: Contents) -> str:
    """A group for the terminal."""
    lines = [TITLES[contents["group"]], caption(contents), "", "\n\n".join(t.text() for t in tables(contents))]
    ahead = losses(contents)
    lines += ["", *notes(contents), *(f"Behind: {line}." for line in ahead)]
    return "\n".join(lines).rstrip() + "\n\n"


def markdown(contents: Contents) -> str:
    """A group for docs/benchmarks.md."""
    parts = [
        f"### {TITLES[contents['group']]}",
        caption(contents) + ".",
        *(t.markdown() for t in tables(contents)),
        *notes(contents),
    ]
    ahead = losses(contents)
    if contents["group"] != "largest-batch":
        parts.append(LOSSES + ("; ".join(ahead) + "." if ahead else "nowhere in this run."))
    return "\n\n".join(parts)


def readme(groups: Sequence[Contents], images: Sequence[tuple[str, str]]) -> str:
    """The README's section: one picture, one small table for each machine whose figures are of today's kernels, or for
    each if there is none, and where we lose."""
    parts = [f"![{title}](docs/{name})" for name, title in images[:1]]
    largest: dict[str, Contents] = {}  # of each machine
    for contents in groups:
        if contents["group"] == "training" and not is_default(contents):
            of = machine.slug(contents["machine"])
            largest[of] = max(largest.get(of, contents), contents, key=_size)
    of_today = [c for c in largest.values() if not _stale(c["machine"])]
    for contents in of_today or largest.values():
        parts += [summary(contents, groups).markdown(), f"{caption(contents)}.", *warnings(contents)]
    if not any(contents["machine"]["device"] == "cuda" for contents in groups):
        parts.append("None of these figures is from a GPU: none has been measured on one yet.")
    ahead = [line for contents in groups for line in losses(contents)]
    parts.append(LOSSES + ("; ".join(dict.fromkeys(ahead)) + "." if ahead else "nowhere in these runs."))
    parts.append(
        "Every peer, net and operation, with the spread of each ratio: [docs/benchmarks.md](docs/benchmarks.md), made "
        "by `python -m benchmarks.report` from the raw samples in `benchmarks/results/`."
    )
    return "\n\n".join(parts)


def _size(contents: Contents) -> tuple[int, int, bool]:
    settings = contents["settings"]
    return settings["image"], settings["batch"], settings["dtype"] == "float32"


def _default_allocator(contents: Contents, groups: Iterable[Contents]) -> Iterator[str]:
    """The ratios of the same comparison under glibc's own allocator, as a sentence."""
    for other in groups:
        is_it = other["group"] == contents["group"] and is_default(other) and not is_default(contents)
        if is_it and is_same_setting(other, contents):
            for lines in by_comparison(other["records"]).values():
                stock = _seconds(lines, BASELINE)
                ours = [r for r in lines if r["family"] == "ours" and r["seconds"] and r["phase"] != "forward"]
                for record in ours if stock else []:
                    yield (
                        "Both sides keep freed memory; with glibc's default allocator, page faults included, "
                        f"{record['label']} is {times(ratio(stock, record['seconds']))} times as fast as torchvision."
                    )


def _seconds(lines: Iterable[Record], variant: str) -> list[float]:
    return next((r["seconds"] for r in lines if r["variant"] == variant), [])


def ordered(groups: Iterable[Contents]) -> list[Contents]:
    """GPUs first, machines apart, large images first, groups in the order of `TITLES`."""
    names = list(TITLES)

    def key(contents: Contents) -> tuple[Any, ...]:
        facts = contents["machine"]
        size = -contents["settings"]["image"]
        place = facts["device"] != "cuda", machine.slug(facts)
        return *place, size, contents["setting"], names.index(contents["group"])

    return sorted(groups, key=key)


def documents(groups: Sequence[Contents], root: Path) -> dict[Path, str]:
    """docs/benchmarks.md and the README with its section replaced."""
    sections = []
    for contents in groups:
        facts = contents["machine"]
        heading = f"## {', '.join(filter(None, (facts['model'], facts.get('instructions'))))}"
        sections += [heading] if heading not in sections else []
        sections += [markdown(contents), *_default_allocator(contents, groups)]
    introduction = (
        "# Benchmarks\n\nMade by `python -m benchmarks.report` from the raw samples in `benchmarks/results/`; do not "
        "edit. `pytest benchmarks/` measures, `--help` lists its options. Variants take turns; a ratio is that of the "
        "medians, beside it the 20th and 80th percentile of the rounds' own ratios. Nothing is timed before its "
        "outputs and gradients have been checked in the same run. MB are 10^6 bytes beyond weights and the batch. "
        "Where we lose is told of the best of ours: the fastest, and for memory the one that needs least."
    )
    path = root / "README.md"
    old = path.read_text()
    if not re.search(f"{START}.*{END}", old, re.DOTALL):
        raise ValueError(f"README.md has no section: expected {START} and {END}")
    images = pictures.available(groups)
    section = f"{START}\n{readme(groups, images)}\n{END}"
    new = re.sub(f"{START}.*{END}", lambda _: section, old, count=1, flags=re.DOTALL)
    drawn = [f"![{title}]({name})" for name, title in images]
    found = {root / "docs" / "benchmarks.md": "\n\n".join([introduction, *drawn, *sections]) + "\n", path: new}
    page = root / "docs" / "feature_reuse.md"
    beside = architectures(groups) if page.exists() else None
    if beside is not None:
        section = f"{START}\n{beside[0].markdown()}\n\n{caption(beside[1])}.\n{END}"
        found[page] = re.sub(f"{START}.*{END}", lambda _: section, page.read_text(), count=1, flags=re.DOTALL)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=results.ROOT, help="folder of the machines' folders")
    parser.add_argument("--root", type=Path, default=machine.ROOT, help="where README.md and docs/ are")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the text is not what it should be")
    args = parser.parse_args(arguments)
    groups = ordered(results.read(args.results))
    if not groups:
        print(f"no results: got none in {args.results}, expected those of `pytest benchmarks/`", file=sys.stderr)
        return 1
    texts = documents(groups, args.root)
    if args.check:
        wrong = [path.name for path, contents in texts.items() if not path.exists() or path.read_text() != contents]
        if wrong:
            print(f"not what the results make: {', '.join(wrong)}; run python -m benchmarks.report", file=sys.stderr)
        return bool(wrong)
    for path, contents in texts.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(contents)
    drawn = pictures.draw(groups, args.root / "docs")
    print("\n".join(["written:", *(f"  {path.name}" for path in [*texts, *drawn])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
