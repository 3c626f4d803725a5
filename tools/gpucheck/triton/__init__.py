"""Triton's kernels on a machine without a GPU: compiled for any architecture (`compiler`), their machine code gated
(`aot`, `sass`), Triton's interpreter repaired (`interpreter`)."""
