"""GPU kernels checked on machines without a GPU. README.md says what each part proves, and what it cannot."""
