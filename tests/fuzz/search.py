"""One search of Hypothesis for a case on which ours differs from stock."""

from hypothesis import HealthCheck, Phase, given, seed, settings

from .cases import Case
from .compare import Wrong, check
from .strategies import cases


def search(
    backend: str,
    examples: int,
    start: int,
    *,
    kinds: tuple[str, ...] = (),
    shrink: bool = True,
    ran: list | None = None,
) -> None:
    """Try so many examples from the seed `start`; those up to the first failure are noted in `ran`.

    Raises:
        Wrong: with the smallest such case.
    """

    shrinking = False

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(tiny=backend == "triton"))
    def attempt(case: Case) -> None:
        nonlocal shrinking
        if ran is not None and not shrinking:
            ran.append(case)
        try:
            check(case, backend, kinds)
        except Wrong:
            shrinking = True
            raise

    attempt()
