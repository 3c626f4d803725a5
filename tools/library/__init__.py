"""The compiled library densenet_fast._C, built from csrc/ by setup.py: against the PyTorch of the environment that it
is installed into, by as many processes as memory allows, with a record of what was built, what was not, and why.

    surroundings    which PyTorch and which compilers there are, or why not
    architectures   TORCH_CUDA_ARCH_LIST
    compiling       processes of compilers beside each other
    build           what is built and what is left out, compiled, linked, loaded; and the record

Nothing here imports PyTorch or densenet_fast: under pip's build isolation neither can be imported.
"""
