"""Faults in the eager backend's bodies."""

from . import Fault, contract

FOLDER = "densenet_fast/backends/eager"
MODES = contract("eager", "test_modes.py")
STEPS = contract("eager", "test_modes.py", "test_steps.py")
DROPOUT = contract("eager", "test_dropout.py")
FAULTS = [
    Fault(
        "the variance of interleaved sums lacks that of their means",
        f"{FOLDER}/batch_norm.py",
        " + (means - mean).square().mean(0)",
        "",
        ("tests/contract/test_modes.py", "tests/test_stage.py", "-k", "not cuda and not triton and not native"),
    ),
    Fault(
        "the stage's last statistics are not written",
        f"{FOLDER}/batch_norm.py",
        "        var.copy_(batch_var)\n",
        "",
        MODES,
    ),
    Fault(
        "running variances are biased",
        f"{FOLDER}/batch_norm.py",
        "m * n / (n - 1) for m, n",
        "m for m, n",
        MODES,
    ),
    Fault(
        "a deferred correction around zero instead of the mean",
        f"{FOLDER}/batch_norm.py",
        ".add_(torch.addcmul(-a, b, mean))",
        ".add_(-a)",
        MODES,
    ),
    Fault(
        "no correction by a",
        f"{FOLDER}/_common.py",
        "            a.addcmul_(scale, self._v, value=1 / count)\n",
        "",
        MODES,
    ),
    Fault(
        "a correction by b that lacks rstd",
        f"{FOLDER}/_common.py",
        "b.addcmul_(scale * rstd, dgamma,",
        "b.addcmul_(scale, dgamma,",
        MODES,
    ),
    Fault(
        "frozen norms are corrected as if of the batch",
        f"{FOLDER}/_common.py",
        "        if batch_stats:\n",
        "        if True:\n",
        MODES,
    ),
    Fault(
        "gamma left out of the gradient of x",
        f"{FOLDER}/_common.py",
        "return rstd if gamma is None else rstd * gamma",
        "return rstd",
        MODES,
    ),
    Fault(
        "a gradient through the ReLU's kink",
        f"{FOLDER}/_common.py",
        "grad, activated, 0, grad_input=grad",
        "grad, activated, -1, grad_input=grad",
        MODES,
    ),
    Fault(
        "dx overwritten instead of added to",
        f"{FOLDER}/_common.py",
        "rows(dx[i]).addcmul_(rows(v[i]), scale)",
        "torch.mul(rows(v[i]), scale, out=rows(dx[i]))",
        MODES,
    ),
    Fault(
        "the kernel is not turned round in dgrad",
        f"{FOLDER}/_common.py",
        "weight.flip(2, 3).transpose(0, 1)",
        "weight.transpose(0, 1)",
        MODES,
    ),
    Fault(
        "no dropout in backward",
        f"{FOLDER}/bn_relu_conv3x3.py",
        "rows(d).mul_(dropout_mask(rows(d), drop_rate, seed))",
        "pass",
        DROPOUT,
    ),
    Fault(
        "the statistics of a slice before dropout",
        f"{FOLDER}/bn_relu_conv3x3.py",
        "    stats_into(y_mean, y_var, new)\n",
        "    stats_into(y_mean, y_var, conv(bn_relu(x, mean, var, gamma, beta, eps), weight))\n",
        DROPOUT,
    ),
    Fault(
        "dropout of other elements",
        f"{FOLDER}/dropout.py",
        "z = z.bitwise_xor_(_shift(z, 27)).mul_(_MIX2)",
        "z = z.bitwise_xor_(_shift(z, 28)).mul_(_MIX2)",
        ("tests/contract/test_dropout.py", "tests/native/test_operations.py", "-k", "eager or dropout_s_mask"),
    ),
    Fault(
        "folded inference without gamma2's scale in the shift",
        f"{FOLDER}/bottleneck.py",
        "folded, shift.to(x.dtype)",
        "folded, torch.zeros_like(shift).to(x.dtype)",
        STEPS,
    ),
    Fault(
        "the head's gradient is not averaged over the columns",
        f"{FOLDER}/head.py",
        "(x.shape[2] * x.shape[3])",
        "(x.shape[2] * x.shape[2])",
        ("tests/test_stage.py", "tests/test_operations.py"),
    ),
    Fault(
        "the head's dx is added to what was there",
        f"{FOLDER}/head.py",
        "    dx.zero_()\n",
        "",
        ("tests/contract/test_modes.py", "tests/test_stage.py", "-k", "not cuda and not triton and not native"),
    ),
    Fault(
        "a stem's window that is one pixel off",
        f"{FOLDER}/stem.py",
        "([3, 3], [2, 2], [1, 1], [1, 1], False)",
        "([3, 3], [2, 2], [0, 0], [1, 1], False)",
        ("tests/test_stage.py", "tests/test_operations.py"),
    ),
    Fault(
        "the stem's gradient is not masked by the ReLU",
        f"{FOLDER}/stem.py",
        "        relu_bwd_(v, activated)\n",
        "",
        MODES,
    ),
    Fault(
        "the transition's average divided by one",
        f"{FOLDER}/transition.py",
        "[2, 2], [2, 2], [0, 0], False, True, None",
        "[2, 2], [2, 2], [0, 0], False, True, 1",
        MODES,
    ),
]
