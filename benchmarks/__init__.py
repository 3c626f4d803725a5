"""Measurements of densenet_fast against its peers: memory, speed, and the demo on real images.

`python -m benchmarks.digits` is the demo, `pytest benchmarks/` the report.
"""
