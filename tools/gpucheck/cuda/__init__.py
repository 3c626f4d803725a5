"""CUDA kernels and the host code that launches them, on a machine without a GPU: launches that run as PTX
(`launches.Machine`), and PyTorch's own CUDA side on a runtime that notes every call (`runtime`)."""

from pathlib import Path

SOURCES = Path(__file__).parent  # launches.cpp, to be linked; runtime.cpp, to be preloaded; their headers
