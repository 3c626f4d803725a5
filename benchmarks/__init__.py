"""Measurements of densenet_fast against its peers: memory, speed, and the demo on real images.

`python -m benchmarks.digits` is the demo, `python -m benchmarks.curves` compares learning curves with stock's. `pytest
benchmarks/` measures, `python -m benchmarks.report` makes tables and pictures of the results, `python -m
benchmarks.gpu` does everything that needs a GPU.

A comparison: a subject (subjects.py) run by variants (variants.py), checked, weighed and timed in turns (compare.py,
rounds.py, memory.py), written with its machine (machine.py) to results/ (results.py).
"""
