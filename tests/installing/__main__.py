"""The table of set-ups, as Markdown: `python -m tests.installing`, some minutes. With words, only rows with these."""

import sys

from .table import ROWS, run


def main(words: list[str]) -> int:
    print("| set-up | what was built | what the user reads | typed then; the model runs on |\n|---|---|---|---|")
    wrong = 0
    for row in (row for row in ROWS if all(word in row.name for word in words)):
        try:
            outcome = run(row)
            typed = f"`{outcome.typed}`; {outcome.runs_on}" if outcome.typed else outcome.runs_on
            print(f"| {row.name} | {outcome.built} | {outcome.told} | {typed} |", flush=True)
        except AssertionError as error:
            wrong += 1
            print(f"| {row.name} | WRONG | {error} | |", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
