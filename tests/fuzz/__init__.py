"""A fuzzer: nets, images and uses drawn by Hypothesis, ours compared with layers that we did not write.

    python -m tests.fuzz --backend native --examples 10000 --seed 1

`cases` what is drawn, `strategies` how, `build` the models of a case, `uses` what is done with them, `compare` the
verdict. A case prints itself as code: `from tests.fuzz.cases import *`, `from tests.fuzz.compare import check`.
"""
