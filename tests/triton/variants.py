"""What `tools.gpucheck.triton.aot` compiles of this package: the launches that the product plans.

python -m tools.gpucheck.triton.aot tests.triton.variants:every        # for every tile and dtype: most of an hour
python -m tools.gpucheck.triton.aot tests.triton.variants:one_of_each  # of each kernel: two minutes
"""

from collections.abc import Hashable

from densenet_fast.backends.triton.launch import Launch
from densenet_fast.backends.triton.precompile import Variant
from tools.gpucheck.triton.aot import Item

from . import plans


def every(architectures: list[int]) -> list[Item]:
    return _planned(architectures, whole=True)


def one_of_each(architectures: list[int]) -> list[Item]:
    """Of each kernel, in bfloat16 on sm_90; of those with products also in float32 there, and in bfloat16 elsewhere."""
    return _planned(architectures, whole=False)


def _planned(architectures: list[int], whole: bool) -> list[Item]:
    found: dict[Hashable, Item] = {}
    for architecture in architectures:
        device = plans.DEVICES[architecture]
        for name, form in plans.FORMS.items():
            if whole or name == "bf16" or (name, architecture) == ("fp32", 90):
                for launch in plans.everything(device, form):
                    if not whole and (name, architecture) != ("bf16", 90) and "PRECISION" not in launch.arguments:
                        continue
                    variant = Variant.of(launch, architecture)
                    key = variant if whole else (variant.kernel, architecture, name)
                    found.setdefault(key, Item(variant, _describe(variant, launch, name)))
    return list(found.values())


def _describe(variant: Variant, launch: Launch, form: str) -> str:
    arguments = launch.arguments
    blocks = "x".join(str(v) for n, v in arguments.items() if n.startswith("BLOCK_"))
    sizes = " ".join(f"{n}={arguments[n]}" for n in ("C", "K", "G") if n in arguments)
    tile = f"{blocks} {variant.num_warps}/{variant.num_stages}"
    return f"sm_{variant.architecture:<3d} {form} {variant.kernel.removesuffix('_kernel'):23s} {sizes:11s} {tile:16s}"
