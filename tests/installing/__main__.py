"""The table of set-ups, as Markdown for docs/installing.md: `python -m tests.installing`, some minutes. With words,
only rows with these."""

import sys

from .table import ROWS, Outcome, run

# The command that most rows end with; docs/installing.md has it above the table.
AGAIN = (
    "DENSENET_FAST_BUILD_CPU=1 python -m pip install --no-build-isolation --force-reinstall --no-deps --no-cache-dir ."
)


def main(words: list[str]) -> int:
    print("| set-up | what was built | why, as the user reads it | typed then; the model runs on |\n|---|---|---|---|")
    wrong = 0
    for row in (row for row in ROWS if all(word in row.name for word in words)):
        try:
            print(line(row.name, run(row)), flush=True)
        except AssertionError as error:
            wrong += 1
            print(f"| {row.name} | WRONG | {error} | |", flush=True)
    return 1 if wrong else 0


def line(name: str, outcome: Outcome) -> str:
    typed = "*again*" if outcome.typed == AGAIN else f"`{outcome.typed}`"
    ends = f"{typed}; {outcome.runs_on}" if outcome.typed else outcome.runs_on
    return f"| {name} | {outcome.built} | {outcome.reason()} | {ends} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
