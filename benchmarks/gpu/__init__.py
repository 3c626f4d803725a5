"""A machine with one GPU, for fifteen minutes and without a network: everything that matters, the most important first.

    python -m benchmarks.gpu first    nine minutes at most: is it right, how fast is it, where is time lost
    python -m benchmarks.gpu again    two and a half: what was mended, by the names of its steps
    python -m benchmarks.gpu more     tuning, scaling, every peer, the whole suite; where there is time

docs/on_a_gpu.md says what to do before, during and after.
"""
