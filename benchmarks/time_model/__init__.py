"""The modelled time of a training step's launches on an H200, kernel by kernel: no measurement, and no GPU.

python -m benchmarks.time_model densenet121 224 256 bfloat16 [--backend native] --against ../other-checkout

`plans` gives a checkout's own Triton launches and their machine code, `programs` how often these go through its loops,
`memory` the bytes that a launch moves; `native` has the same of the native backend's launches. `machine_code` has the
instructions that a program executes, `multiprocessor` the cycles they take there, `model` the time that follows, and
`measured` what a GPU has said of it. docs/measuring.md, "A model of the time".
"""
