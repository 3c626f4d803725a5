"""Faults in a stage, whatever its backend: its passes, its tensors, what it refuses, and where a block's memory is."""

from . import Fault, contract

FOLDER, BLOCK = "densenet_fast/stage", "densenet_fast/contract/block.py"
STAGE, ERRORS = "tests/test_stage.py", "tests/test_errors.py"
OWN_EPS = contract("eager and own_eps", "test_modes.py")
FAULTS = [
    Fault(
        "FLOPs of a transition's convolution are those behind its pooling",
        "densenet_fast/contract/flops.py",
        "return counted // pooled_pixels * pixels",
        "return counted",
        ("tests/test_flops.py",),
    ),
    Fault(
        "a counter of FLOPs from before the first step counts nothing",
        "densenet_fast/backends/__init__.py",
        "    contract.serve_modes()\n",
        "",
        ("tests/test_flops.py",),
    ),
    Fault(
        "a gradient of a gradient stops at a buffer's copy of x",
        f"{FOLDER}/recompute.py",
        "elif need and not values[i].requires_grad:",
        "elif need and i and not values[i].requires_grad:",
        (STAGE, "-k", "gradgrad"),
    ),
    Fault(
        "a recomputed layer drops other values",
        f"{FOLDER}/recompute.py",
        "new = new * _dropout_mask(new, layer.drop_rate, layer.seed)",
        "new = new * _dropout_mask(new, layer.drop_rate, layer.seed + 1)",
        (STAGE, "-k", "to_be_differentiated"),
    ),
    Fault(
        "a second order keeps x",
        f"{FOLDER}/recompute.py",
        "    edge.data = tensor.new_empty(0)\n",
        "",
        (STAGE, "-k", "costs_nothing"),
    ),
    Fault(
        "backward ends one layer too early",
        f"{FOLDER}/schedule.py",
        "lowest = 0 if needs_x else next(layers, count)",
        "lowest = 0 if needs_x else next(layers, count) + 1",
        (STAGE, "-k", "partial_gradients"),
    ),
    Fault(
        "a consumer's frozen norm is corrected as if of the batch",
        f"{FOLDER}/schedule.py",
        "correction[:, spec.of_consumer] if spec.consumer.batch else None",
        "correction[:, spec.of_consumer]",
        (STAGE, "-k", "frozen_norms"),
    ),
    Fault(
        "x's correction left out",
        f"{FOLDER}/schedule.py",
        "stats[0, of_x], correction[:, of_x], dx)",
        "stats[0, of_x], 0 * correction[:, of_x], dx)",
        (STAGE, "-k", "gradcheck"),
    ),
    Fault(
        "statistics given to norms are not copied for backward",
        f"{FOLDER}/function.py",
        "_fitted(stage, _with_own_statistics(stage, tensors), dtypes)",
        "_fitted(stage, tensors, dtypes)",
        contract("eager and two_forwards", "test_steps.py"),
    ),
    Fault(
        "gradients left in autocast's dtype for autograd to convert",
        f"{FOLDER}/function.py",
        "            gradients = _converted(gradients, ctx.dtypes)\n",
        "",
        (STAGE, "-k", "autocast_converts"),
    ),
    Fault(
        "a block's output left in autocast's dtype",
        f"{FOLDER}/function.py",
        "    return result._replace(y=result.y.to(dtype))\n",
        "    return result\n",
        ("tests/test_drop_in.py", "-k", "dtypes_under_autocast"),
    ),
    Fault(
        "a block's output shares its memory with the buffer",
        f"{FOLDER}/function.py",
        "shared=stage.spec.consumer is None)",
        "shared=False)",
        (STAGE, "-k", "output_is_dense"),
    ),
    Fault(
        "an output handed out with gaps",
        f"{FOLDER}/buffer.py",
        "if shared or y.stride() != strides else y",
        "if shared else y",
        (STAGE, "-k", "output_is_dense"),
    ),
    Fault(
        "shapes are not compared",
        f"{FOLDER}/checks.py",
        "        if tensor.shape != shape:",
        "        if False:",
        (ERRORS,),
    ),
    Fault(
        "one value per channel is not refused",
        f"{FOLDER}/checks.py",
        "if x.shape[0] * prod(size) == 1 and spec.alone:",
        "if False:",
        (ERRORS, "-k", "one_value"),
    ),
    Fault(
        "a bottleneck's statistics read from another's columns",
        f"{FOLDER}/spec.py",
        "channels + layer.growth, begin + layer.width",
        "channels + layer.growth, begin + layer.growth",
        OWN_EPS,
    ),
    Fault(
        "bottlenecks' statistics in one place",
        BLOCK,
        "end, statistics + width, z + aligned(pixels * width)",
        "end, statistics, z + aligned(pixels * width)",
        OWN_EPS,
    ),
    Fault(
        "bottlenecks kept in one place",
        BLOCK,
        "end, statistics + width, z + aligned(pixels * width)",
        "end, statistics + width, z",
        OWN_EPS,
    ),
    Fault("norm2 with norm1's eps", BLOCK, "gamma2, beta2, eps2)", "gamma2, beta2, eps1)", OWN_EPS),
    Fault(
        "layers drop the same elements",
        BLOCK,
        "drop_rate == 0 else self.seeds[i]",
        "drop_rate == 0 else self.seeds[0]",
        contract("eager and stock_layers", "test_dropout.py"),
    ),
    *(
        Fault(name, f"{FOLDER}/halves.py", before, after, ("tests/test_synchronised.py", "-k", check))
        for name, before, after, check in (
            ("means of processes merged, not their spread", "(means - mean).square()", "0", "uneven"),
            (
                "processes count the same in a mean",
                "share = counts / self._of_group[group]",
                "share = 1 / len(counts)",
                "uneven",
            ),
            ("a process's correction counts as all others'", "local * self._values", "local", "uneven"),
            (
                "a bottleneck's correction is not reduced",
                "self._reduced(corrected_z, of.group2)",
                "corrected_z",
                "uneven",
            ),
            ("variances of a group reported biased", "stats[1].mul_(count / (count - 1))", "pass", "without_gradients"),
            (
                "a bottleneck recomputed with this process's statistics",
                "one._replace(tensors=tensors), False",
                "one, False",
                "uneven_recomputing",
            ),
            ("corrections of different means added", "+= a + b * (mean - ", "+= a + 0 * (mean - ", "mixed_groups"),
            (
                "every norm reduced over all processes",
                "_resolve_process_group(name)",
                '_resolve_process_group("0")',
                "mixed_groups",
            ),
            ("an empty batch counts", "if self._values == 0:", "if False:", "empty"),
        )
    ),
    Fault(
        "a tap's gradient is not added to the buffer's",
        f"{FOLDER}/schedule.py",
        "            g.add_(dbuffer)\n",
        "            pass\n",
        ("tests/test_intermediates.py", "-k", "timms and some and not efficient"),
    ),
    Fault(
        "a tap has a version of its own",
        f"{FOLDER}/function.py",
        "passed.x.detach() if stage.wanted.buffer",
        "passed.x.data if stage.wanted.buffer",
        ("tests/test_intermediates.py", "-k", "in_place_is_told"),
    ),
    Fault(
        "frozen layers keep their bottlenecks",
        f"{FOLDER}/function.py",
        "not stage.efficient and stage.spec.layers_learn(needs_x, needs)",
        "not stage.efficient",
        ("tests/test_backbone.py", "-k", "no_bottlenecks"),
    ),
    Fault(
        "a dilated convolution's gradient is that of an undilated one",
        "densenet_fast/backends/eager/block.py",
        "v = conv_dgrad(d, weight, dilation)",
        "v = conv_dgrad(d, weight)",
        ("tests/test_dilated.py", "-k", "by_hand and 8-False"),
    ),
    Fault(
        "gradients pass channels that were dropped",
        f"{FOLDER}/halves.py",
        "d.mul_(self._mask(layer))",
        "d",
        ("tests/conversion/test_channel_dropout.py", "-k", "draw_for_draw and 2-False"),
    ),
    *(
        Fault(name, f"{FOLDER}/{file}", before, after, ("tests/test_dimensions.py", "-x"))
        for name, file, before, after in (
            (
                "a volume's first half run twice",
                "mixed.py",
                "eager.block_fwd(x, stats, z, block, tracked, begin, end, halves, dilation)",
                "eager.block_fwd(x, stats, None, block, tracked, begin, end, Half.BOTH, dilation)",
            ),
            (
                "a volume's first weight has no gradient",
                "mixed.py",
                "wanted[_WEIGHT1] = _pointwise(wanted[_WEIGHT1])",
                "wanted[_WEIGHT1] = None",
            ),
            ("the parts of a volume's buffer in another order", "buffer.py", "shape[:1:-1], mul", "shape[2:], mul"),
            ("a volume's output laid out as its buffer", "function.py", "or y.dim() == 2", "or y.dim() != 4"),
            ("halves of a volume run together", "halves.py", "mixed.is_mixed(spec, i) or ", ""),
            ("a signal's sizes counted as a plane's", "checks.py", "min(size) < 2", "size[0] < 1"),
        )
    ),
]
