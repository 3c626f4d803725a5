"""The modelled time of a training step's Triton launches on an H200, kernel by kernel: no measurement, and no GPU.

python -m benchmarks.time_model densenet121 224 256 bfloat16 --against ../other-checkout

`plans` gives a checkout's own launches and their machine code, `machine_code` the instructions that a program executes,
`multiprocessor` the cycles they take there, `memory` the bytes that a launch moves, `model` the time that follows, and
`measured` what a GPU has said of it. docs/measuring.md, "A model of the time".
"""
