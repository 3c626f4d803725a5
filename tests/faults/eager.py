"""Faults in the eager backend's bodies."""

from . import Fault, contract

FOLDER = "densenet_fast/backends/eager"
BLOCK = f"{FOLDER}/block.py"
MODES = contract("eager", "test_modes.py")
STEPS = contract("eager", "test_modes.py", "test_steps.py")
DROPOUT = contract("eager", "test_dropout.py")
PIECES = ("tests/test_operations.py", "-k", "piece_by_piece")
FAULTS = [
    Fault(
        "the variance of interleaved sums lacks that of their means",
        f"{FOLDER}/batch_norm.py",
        "variances.addcmul_(apart, apart)",
        "variances",
        ("tests/contract/test_modes.py", "tests/test_stage.py", "-k", "not cuda and not triton and not native"),
    ),
    Fault(
        "the variance of the batch is not written",
        f"{FOLDER}/batch_norm.py",
        "torch.mean(variances.addcmul_(apart, apart), 0, out=var)",
        "torch.mean(variances.addcmul_(apart, apart), 0)",
        MODES,
    ),
    Fault(
        "running variances are biased",
        f"{FOLDER}/batch_norm.py",
        "m * count / (count - 1) for m",
        "m for m",
        MODES,
    ),
    Fault(
        "a deferred correction around zero instead of the mean",
        f"{FOLDER}/batch_norm.py",
        "torch.addcmul(a, b, mean, value=-1)",
        "a.clone()",
        MODES,
    ),
    Fault(
        "no correction by a",
        f"{FOLDER}/_common.py",
        "            a.addcmul_(self._norm.scale, dbeta, value=1 / count)\n",
        "",
        MODES,
    ),
    Fault(
        "a correction by b that lacks rstd",
        f"{FOLDER}/_common.py",
        "b.addcmul_(self._norm.scale * self._norm.rstd, dgamma,",
        "b.addcmul_(self._norm.scale, dgamma,",
        MODES,
    ),
    Fault(
        "frozen norms are corrected as if of the batch",
        BLOCK,
        "correction if norm.uses_batch else None,",
        "correction,",
        MODES,
    ),
    Fault(
        "gamma left out of the gradient of x",
        f"{FOLDER}/_common.py",
        "self.rstd if norm.gamma is None else self.rstd * norm.gamma",
        "self.rstd",
        MODES,
    ),
    Fault(
        "a gradient through the ReLU's kink",
        f"{FOLDER}/_common.py",
        "grad, x, 0, grad_input=grad",
        "grad, x, -1, grad_input=grad",
        MODES,
    ),
    Fault(
        "dx overwritten instead of added to",
        BLOCK,
        "part(dx, i).addcmul_(of_v, bn.scale)",
        "torch.mul(of_v, bn.scale, out=part(dx, i))",
        MODES,
    ),
    Fault(
        "the taps of a weight's gradient in the order of those of dy",
        f"{FOLDER}/_common.py",
        ".flip(0, *range(2, 1 + len(size)))",
        "",
        MODES,
    ),
    Fault(
        "a weight's gradient of the last piece alone",
        BLOCK,
        "found if of_weight is None else of_weight.add_(found)",
        "found",
        PIECES,
    ),
    Fault(
        "sums of the last piece alone",
        f"{FOLDER}/_common.py",
        "[a.add_(b) for a, b in zip(self._sums, found, strict=True)] if self._sums else found",
        "found",
        PIECES,
    ),
    Fault(
        "the kernel is not turned round in dgrad",
        f"{FOLDER}/_common.py",
        "else weight.flip(*range(2, weight.dim()))",
        "else weight",
        MODES,
    ),
    Fault(
        "no dropout in backward",
        BLOCK,
        "d.mul_(dropout_mask(d, layer.drop_rate, layer.seed))",
        "pass",
        DROPOUT,
    ),
    Fault(
        "the statistics of a slice before dropout",
        BLOCK,
        "        row_stats(new, stats[:, layer.begin : layer.end])\n",
        "        row_stats(conv(activated, weight, images), stats[:, layer.begin : layer.end])\n",
        DROPOUT,
    ),
    Fault(
        "dropout of other elements",
        f"{FOLDER}/dropout.py",
        "z = z.bitwise_xor_(_shift(z, 27)).mul_(_MIX2)",
        "z = z.bitwise_xor_(_shift(z, 28)).mul_(_MIX2)",
        DROPOUT,
    ),
    Fault(
        "folded inference without gamma2's scale in the shift",
        BLOCK,
        "folded, images, bn2.shift.to(features.dtype)",
        "folded, images, 0 * bn2.shift.to(features.dtype)",
        STEPS,
    ),
    Fault(
        "the head's gradient is not averaged over the columns",
        f"{FOLDER}/head.py",
        "(dy[i] / of_image)",
        "(dy[i] / x.shape[2] ** 2)",
        ("tests/test_stage.py", "tests/test_operations.py"),
    ),
    Fault(
        "a consumer's dx is added to what was there",
        f"{FOLDER}/_common.py",
        "torch.mul(v, bn.scale, out=rows(dx[i]))",
        "rows(dx[i]).addcmul_(v, bn.scale)",
        ("tests/contract/test_modes.py", "tests/test_stage.py", "-k", "not cuda and not triton and not native"),
    ),
    Fault(
        "a stem's window that is one pixel off",
        f"{FOLDER}/stem.py",
        "plane(x), *_settings(x), positions)",
        "plane(x), *_settings(x), (positions - 1).clamp_min(0))",
        ("tests/test_stage.py", "tests/test_operations.py"),
    ),
    Fault(
        "a consumer's gradient is not masked by the ReLU",
        f"{FOLDER}/_common.py",
        "relu_bwd_(gradient(i, activated), activated)",
        "gradient(i, activated)",
        MODES,
    ),
    Fault(
        "the transition's average divided by one",
        f"{FOLDER}/transition.py",
        "window(x, 0, 0), False, True, None",
        "window(x, 0, 0), False, True, 1",
        MODES,
    ),
    *(
        Fault(name, f"densenet_fast/backends/eager/{file}.py", before, after, ("tests/test_dimensions.py", "-x"))
        for name, file, before, after in (
            ("a signal pooled across channels of nothing", "_common", "[across, size] if", "[size, across] if"),
            (
                "a kernel turned round in two of three dimensions",
                "_common",
                "range(2, weight.dim())",
                "range(2, min(4, weight.dim()))",
            ),
            ("narrow volumes averaged as they are", "transition", "x.to(accumulator(x.dtype)) if x.is_cpu else x", "x"),
            (
                "a volume's maxima spread over windows of two",
                "stem",
                "return window(x, 3, 1), window(x, 2, 1)",
                "return window(x, 2, 1), window(x, 2, 1)",
            ),
        )
    ),
]
