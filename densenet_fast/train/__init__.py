"""Training as in the paper, on Lightning's Trainer: `densenet-fast fit | validate | predict` (docs/training.md).

Needs the extra `train`; `import densenet_fast` does not import it.
"""
