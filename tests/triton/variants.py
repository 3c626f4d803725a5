"""What `tools.gpucheck.triton.aot` compiles of this package: the launches that the product plans.

python -m tools.gpucheck.triton.aot tests.triton.variants:every        # for every tile and dtype: most of an hour
python -m tools.gpucheck.triton.aot tests.triton.variants:one_of_each  # of each kernel: two minutes
"""

from collections.abc import Hashable

from densenet_fast.backends.triton.launch import Launch
from densenet_fast.backends.triton.precompile import Variant
from tools.gpucheck.triton.aot import Item

from . import plans

# Two stages, although loads are exposed.
NEIGHBOURS = {
    ("bn_relu_conv1x1_fwd", "fp32"),
    ("transition_fwd", "tf32"),
    ("transition_fwd", "fp32"),
    ("transition_wgrad", "bf16"),
    ("transition_wgrad", "fp16"),
    ("transition_wgrad", "tf32"),
}


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
                    item = Item(variant, _describe(variant, launch, name), _reasons(variant, launch, name))
                    found.setdefault(key, item)
    return list(found.values())


def _reasons(variant: Variant, launch: Launch, form: str) -> dict[str, str]:
    """Why products of sm_90 wait for each other, or for what they have begun to load."""
    a, kernel = launch.arguments, variant.kernel.removesuffix("_kernel")
    half, found = form in ("bf16", "fp16"), {}
    if variant.architecture != 90 or "PRECISION" not in a:
        return {}
    if kernel == "bn_relu_conv3x3_fwd" and form != "fp32" and not (half and a["G"] <= 32):
        found["serialised"] = "the operand computed for four accumulators, but in tiles of 32 outputs in 16 bits"
    elif kernel == "bn_relu_conv3x3_fwd" and half and a["y"].data_ptr() % 16 + a["G"] % 2:
        found["serialised"] = "accumulators that are stored as they lie, off 16 bytes"
    elif kernel == "bn_relu_conv3x3_dgrad" and a["ACCUMULATE"]:
        found["serialised"] = "accumulators that are added to memory"
    if variant.num_stages == 1 and kernel == "bn_relu_conv1x1_bwd":
        found["exposed"] = "rows of the weight off 16 bytes: their addresses take the registers of more stages"
    elif variant.num_stages == 1:
        found["exposed"] = "rows that are no multiple of 4 bytes are not copied asynchronously"
    elif variant.num_stages == 2 and (kernel, form) in NEIGHBOURS:
        found["exposed"] = "more programs on a multiprocessor, at least of rows on 16 bytes, hide each other's loads"
    return found


def _describe(variant: Variant, launch: Launch, form: str) -> str:
    arguments = launch.arguments
    blocks = "x".join(str(v) for n, v in arguments.items() if n.startswith("BLOCK_"))
    sizes = " ".join(f"{n}={arguments[n]}" for n in ("C", "K", "G") if n in arguments)
    tile = f"{blocks} {variant.num_warps}/{variant.num_stages}"
    return f"sm_{variant.architecture:<3d} {form} {variant.kernel.removesuffix('_kernel'):23s} {sizes:11s} {tile:16s}"
