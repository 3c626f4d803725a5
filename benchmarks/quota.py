"""What a quota costs that lets a process use one processor where PyTorch has more threads, as `docker run --cpus=1`.

    python -m benchmarks.quota [../other-checkout] [--save]      # as root, who may make control groups

Inference of one image by DenseNet-121 at 224x224 on the CPU, by everyone in a process and a control group of its own,
one after the other: a quota counts what threads do between turns, too. `--save` writes all samples to
benchmarks/results/quota.json.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from . import checkouts, neighbour

CASE = "inference of one"
PERIOD = 100_000  # microseconds, the system's own
RESULTS = neighbour.RESULTS.with_name("quota.json")


@contextmanager
def one_processor(name: str, process: int) -> Iterator[None]:
    """A control group for the process."""
    first = Path("/sys/fs/cgroup/cpu")  # of version 1; in version 2 there is one tree for all that is controlled
    parent = first if first.is_dir() else Path("/sys/fs/cgroup")
    group = parent / f"densenet_fast_{name}"
    group.mkdir()
    try:
        if parent == first:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(PERIOD))
        else:
            (group / "cpu.max").write_text(f"{PERIOD} {PERIOD}")
        (group / "cgroup.procs").write_text(str(process))
        yield
        (parent / "cgroup.procs").write_text(str(process))
    finally:
        group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("against", type=Path, nargs="?", help="another checkout of this repository, built")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/quota.json")
    options = parser.parse_args()
    trees = checkouts.here_and(options.against)
    trees |= {name: neighbour.ROOT for name in neighbour.PEERS if find_spec(name)}
    found: dict[str, list[float]] = {name: [] for name in trees}
    for name in trees:
        with neighbour.processes({name: trees[name]}) as running, one_processor(name, running[name].pid):
            for i in range(options.rounds + 1):
                seconds = neighbour.ask(running[name], CASE)
                found[name] += seconds if i else []  # the first are of what is compiled and allocated
        print(f"{CASE:18} {name:12} {1e3 * statistics.median(found[name]):8.1f} ms", flush=True)
    if options.save:
        checkouts.save(RESULTS, options.against, seconds=found)


if __name__ == "__main__":
    main()
