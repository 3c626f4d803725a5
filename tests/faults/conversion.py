"""Faults in conversion: of other libraries' layers, of what stays, of blocks that are tried."""

from . import Fault

LIBRARIES, PARTS, TRIAL, CONVERT = (
    f"densenet_fast/conversion/{name}.py" for name in ("libraries", "parts", "trial", "__init__")
)


def tests(words: str) -> tuple[str, ...]:
    return ("tests/conversion/test_convert.py", "-k", words)


FAULTS = [
    Fault(
        "a conversion takes its owner's attributes",
        PARTS,
        "if hasattr(part, name)]",
        "if False]",
        tests("of_ours"),
    ),
    Fault(
        "a norm of timm's is taken for one without its ReLU",
        "densenet_fast/modules/eligibility.py",
        '("timm.layers.norm_act", "BatchNormAct2d"): True',
        '("timm.layers.norm_act", "BatchNormAct2d"): False',
        tests("outputs and timm"),
    ),
    Fault(
        "another activation inside a norm is taken for a ReLU",
        "densenet_fast/modules/eligibility.py",
        '    "act": lambda module: why_not(module, nn.ReLU),\n',
        "",
        tests("another_activation"),
    ),
    Fault("dropout in evaluation", LIBRARIES, "if layer.training else 0.0", "", tests("known_by_trial")),
    Fault(
        "dropout of whole channels as of single values",
        LIBRARIES,
        "view._replace(drops_channels=drops_channels)",
        "view",
        ("tests/conversion/test_channel_dropout.py",),
    ),
    Fault(
        "timm's word for recomputation is not heard",
        LIBRARIES,
        'own.get("grad_checkpointing") or ',
        "",
        tests("own_words"),
    ),
    Fault(
        "recomputation is not asked for",
        PARTS,
        "        part.efficient = efficient\n",
        "        part.efficient = False\n",
        tests("own_words"),
    ),
    Fault(
        "a copy is a stock model again",
        PARTS,
        "cls = _converted_class(stock, library)",
        "cls = stock",
        tests("pickled"),
    ),
    Fault("reverting leaves attributes", PARTS, "part.__dict__.pop(name, None)", "pass", tests("reverting")),
    Fault(
        "a block whose forward was overridden is converted",
        LIBRARIES,
        "cls is not None and runs_as(block, cls)",
        "cls is not None",
        tests("overridden"),
    ),
    Fault(
        "an error reverts what was converted before",
        CONVERT,
        "if id(module) not in before:",
        "if True:",
        tests("left_or_an_error"),
    ),
    Fault(
        "an error leaves parts converted",
        CONVERT,
        "            if id(module) not in before:\n                change_back(module)\n",
        "            pass\n",
        tests("left_or_an_error"),
    ),
    Fault(
        "blocks are tried in evaluation only",
        TRIAL,
        "for training in (False, True):",
        "for training in (False,):",
        tests("only_looks"),
    ),
    Fault("a trial forgives", TRIAL, "_TOLERANCE = 1e-10", "_TOLERANCE = 1e-2", tests("only_looks")),
    Fault(
        "a trial moves the random numbers",
        TRIAL,
        "torch.random.fork_rng(devices=[])",
        "torch.random.fork_rng(enabled=False)",
        tests("known_by_trial"),
    ),
]
