"""One screen: what works, how fast it is, what to mend next."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from ..rounds import spread
from ..table import Table
from ..variants import BY_NAME
from .collect import Line, ceilings, comparison, of
from .runner import GOOD, named, why

WORST = 24  # lines of faults
REST = "…"


def text(lines: Sequence[Line], limit: float, took: float) -> str:
    parts = [
        _head(lines, limit, took),
        _steps(lines),
        _operations(lines),
        _models(lines),
        _sanitizer(lines),
        _rates(lines),
        _memory(lines),
        _cpu(lines),
        _profile(lines),
        _not_run(lines),
        _faults(lines),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(lines: Sequence[Line], limit: float, took: float) -> str:
    place = next((line for line in of(lines, "machine") if line.get("model")), None)
    where = "an unknown machine"
    if place:
        where = f"{place['model']}, torch {place['torch']}, commit {place['commit']}, {place['date']}"
    library = "".join(f"; library {line['why']}" for line in of(lines, "library"))
    variants = "".join(
        f"; {v['count']} Triton variants in {v['seconds']:.0f} s" for v in of(lines, "variants") if "count" in v
    )
    return f"{where}; {took:.0f} s of {limit:.0f}{library}{variants}"


def _steps(lines: Sequence[Line]) -> str:
    return "steps: " + ", ".join(f"{s['step']} {s['verdict']} {s['seconds']:.0f} s" for s in of(lines, "step"))


def counted(lines: Iterable[Line]) -> str:
    """How many of each verdict: "18 right, 1 dead"."""
    found = Counter(line["verdict"] for line in lines)
    return ", ".join(f"{n} {verdict}" for verdict, n in found.items()) or "-"


def _operations(lines: Sequence[Line]) -> str:
    """Right or not, and how near to copying the bytes that the operation must move."""
    smoke, timed = of(lines, "smoke"), of(lines, "operation")
    names = list(dict.fromkeys(line["operation"] for line in (*smoke, *timed)))
    backends = list(dict.fromkeys(line["backend"] for line in (*smoke, *timed)))
    copy = ceilings(lines).get("copy_bytes_per_s")
    rows = []
    for name in names:
        row = [name]
        for backend in backends:
            row.append(counted(s for s in smoke if (s["operation"], s["backend"]) == (name, backend)))
            line = next((t for t in timed if (t["operation"], t["backend"]) == (name, backend)), None)
            row.append(_share(line, copy))
        rows.append(row)
    if not rows:
        return ""
    header = ["operation", *(title for b in backends for title in (b, "ms, of copy"))]
    rate = f"; a copy moves {copy / 1e9:.0f} GB/s" if copy else ""
    return f"right against float64, and time of all its calls in a step{rate}\n" + Table(header, rows).text()


def _share(line: Line | None, copy: float | None) -> str:
    if line is None or not line.get("seconds"):
        return "-" if line is None or line["verdict"] == "not run" else line["verdict"]
    seconds = spread(line["seconds"]).median
    share = f", {line['bytes'] / seconds / copy:.0%}" if copy else ""
    return f"{1000 * seconds:.2f}{share}"


def _models(lines: Sequence[Line]) -> str:
    found: dict[str, list[str]] = defaultdict(list)
    for line in of(lines, "model"):
        found[f"{line['net']} {line['backend']}"].append(f"{line['what']} {line['verdict']}")
    return (
        "\n".join(["a whole step:", *(f"  {name}: {', '.join(told)}" for name, told in found.items())]) if found else ""
    )


def _sanitizer(lines: Sequence[Line]) -> str:
    told = [f"{s['tool']} {s['backend']} {s['verdict']} ({why(s)})" for s in of(lines, "sanitizer")]
    return "compute-sanitizer: " + "; ".join(told) if told else ""


def _rates(lines: Sequence[Line]) -> str:
    """Images per second by variant and workload, and how many times torchvision's."""
    workloads = list(dict.fromkeys(line["workload"] for line in of(lines, "outcome") if "workload" in line))
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    for workload in workloads:
        outcomes = [line for line in of(lines, "outcome") if line.get("workload") == workload]
        turns = [line for line in of(lines, "turn") if line["workload"] == workload]
        for name, outcome in comparison(outcomes, turns).outcomes.items():
            for phase in ("forward+backward", "inference"):
                if outcome.seconds.get(phase):
                    rates[name][workload] = outcomes[0]["batch"] / spread(outcome.seconds[phase]).median
    if not rates:
        return ""

    def cell(name: str, workload: str) -> str:
        rate, stock = rates[name].get(workload), rates.get("torchvision", {}).get(workload)
        return "-" if rate is None else f"{rate:.0f}" + (f" ({rate / stock:.2f}x)" if stock else "")

    rows = [[BY_NAME[name].label, *(cell(name, w) for w in workloads)] for name in rates]
    return "images/s (times torchvision)\n" + Table(["", *workloads], rows).text()


def _memory(lines: Sequence[Line]) -> str:
    weighed = [line for line in (*of(lines, "outcome"), *of(lines, "memory")) if line.get("live") is not None]
    largest = max((line["batch"] for line in weighed), default=0)
    found = {line["variant"]: line for line in weighed if line["batch"] == largest}
    told = [f"{v} {m['live'] / largest / 1e6:.1f}/{m['peak'] / largest / 1e6:.1f}" for v, m in found.items()]
    return f"kept/peak MB per image, training {largest}: " + ", ".join(told) if told else ""


def _cpu(lines: Sequence[Line]) -> str:
    """Images per second on the CPU, ours and in brackets torchvision's, by the number of threads."""
    rates = {
        (c["threads"], c["workload"], c["variant"]): c["images_per_s"] for c in of(lines, "cpu") if "images_per_s" in c
    }
    workloads = list(dict.fromkeys(workload for _, workload, _ in rates))

    def cell(threads: int, workload: str) -> str:
        ours, stock = (rates.get((threads, workload, variant)) for variant in ("native", "torchvision"))
        return f"{ours:.1f} ({stock:.1f})" if ours and stock else "-"

    rows = [[str(n), *(cell(n, w) for w in workloads)] for n in sorted({threads for threads, _, _ in rates})]
    return Table(["threads: native (torchvision) images/s", *workloads], rows).text() if rows else ""


PROFILED = ("Duration", "DRAM Throughput", "Compute (SM) Throughput", "Achieved Occupancy")


def _profile(lines: Sequence[Line]) -> str:
    """The longest launch of each kernel."""
    rows = []
    for line in of(lines, "ncu"):
        longest: dict[str, Line] = {}
        for launch in line.get("kernels", ()):
            if _number(launch) >= _number(longest.get(launch["kernel"], {})):
                longest[launch["kernel"]] = launch
        for name, launch in sorted(longest.items(), key=lambda item: -_number(item[1]))[:4]:
            rows.append([line["backend"], name[-48:], *(launch.get(metric, "-") for metric in PROFILED)])
    return Table(["ncu", "kernel", *PROFILED], rows).text() if rows else ""


def _number(launch: Line) -> float:
    value, _, unit = launch.get("Duration", "0 ns").replace(",", "").partition(" ")
    return float(value) * {"ns": 1.0, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6}.get(unit, 1.0)


def _not_run(lines: Sequence[Line]) -> str:
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        if line.get("verdict") == "not run":
            reasons[line.get("why") or "unknown"][line.get("step") or _short(line)] += 1
    told = (f"  {why}: " + ", ".join(f"{n} {what}" for what, n in c.items()) for why, c in reasons.items())
    return "\n".join(["not run:", *told]) if reasons else ""


def _short(line: Line) -> str:
    told = (line.get(key) for key in ("backend", "variant", "what", "tool"))
    return " ".join([line["kind"], *(value for value in told if value)])


def _faults(lines: Sequence[Line]) -> str:
    """Each with its reason; many of one operation, or of one reason, as one."""
    seen: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        if line.get("verdict", "right") not in GOOD and line["kind"] != "step":
            key = (line["kind"], *(str(line.get(k)) for k in ("backend", "operation", "net", "workload", "verdict")))
            seen[key].append(line)
    seen |= {("step", s["step"]): [s] for s in of(lines, "step") if s["verdict"] == "failed"}
    alike: dict[tuple[str, ...], list[Line]] = defaultdict(list)  # by backend, whatever the operation
    for key, group in seen.items():
        alike[key[0], str(group[0].get("backend")), key[-1], why(group[0])] += group
    told = list(_told(alike.values()))
    more = [f"  {REST} and {len(told) - WORST} more lines like these"] if len(told) > WORST else []
    return "\n".join(["to mend:", *told[:WORST], *more]) if told else "to mend: nothing was found"


def _told(groups: Iterable[list[Line]]) -> Iterator[str]:
    for group in groups:
        first = group[0]
        others = f" (and {len(group) - 1} like it)" if len(group) > 1 else ""
        yield f"  {first['verdict']}: {first.get('step') or named(first)}: {why(first)}{others}"
