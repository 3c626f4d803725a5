"""How cases are drawn. Everything goes through Hypothesis, so that it can shrink what it found."""

from dataclasses import replace

from hypothesis import strategies as st

from .build import REPLACEMENTS
from .cases import Case, Change, Hook, Image, Mode, Net, Use

SMALLER = {"growths": (1, 2), "depths": (0, 1, 2), "inits": (2, 3), "batches": (1, 2), "extra": (0, 1)}  # interpreted
LARGER = {
    "growths": (1, 2, 3, 4, 8),
    "depths": (0, 1, 2, 3),
    "inits": (2, 3, 4, 6, 8),
    "batches": (1, 2, 3, 4),
    "extra": (0, 1, 2, 3, 5, 8, -1),
}


def sometimes(value, otherwise):
    """`otherwise` three times of four, and what shrinking goes to."""
    return st.sampled_from((True, True, True, False)).flatmap(lambda no: st.just(otherwise) if no else value)


def subset(items, most=3):
    return st.lists(st.sampled_from(list(items)), max_size=most, unique=True).map(tuple)


@st.composite
def nets(draw, limits):
    torchvision = draw(st.booleans())
    blocks = draw(st.lists(st.sampled_from(limits["depths"]), min_size=1, max_size=3).map(tuple))
    numbers = range(1, len(blocks) + 1)
    return Net(
        growth=draw(st.sampled_from(limits["growths"])),
        blocks=blocks,
        bn_size=draw(st.sampled_from((1, 2, 4, None))),
        init=draw(st.sampled_from(limits["inits"])),
        small=not torchvision and draw(st.booleans()),
        compression=0.5 if torchvision else draw(st.sampled_from((0.5, 0.7, 1.0))),
        drop_rate=draw(st.sampled_from((0.0, 0.0, 0.0, 0.0, 0.3))),
        in_channels=draw(st.sampled_from((1, 2, 3))),
        classes=draw(st.sampled_from((1, 3))),
        efficient=draw(subset(numbers)),
        plain=draw(sometimes(subset(numbers), ())),
        torchvision=torchvision,
    )


@st.composite
def images(draw, net, limits):
    size = st.sampled_from(limits["extra"]).map(lambda more: max(1, net.least_size() + more))
    return Image(
        n=draw(st.sampled_from(limits["batches"])),
        h=draw(size),
        w=draw(size),
        layout=draw(st.sampled_from(("nchw", "channels_last", "cropped", "gray", "strided"))),
        needs_grad=draw(st.booleans()),
    )


def modes(path):
    return st.builds(
        Mode,
        path=st.just(path),
        training=st.sampled_from((None, True, False)),
        track=st.sampled_from(("yes", "yes", "no", "off")),
        momentum=st.sampled_from((0.1, None, 0.0, 1.0)),
        affine=st.sampled_from((True, True, False)),
        eps=st.sampled_from((1e-5, 1e-3, 0.1)),
        zero_gamma=st.sampled_from((False, False, True)),
    )


@st.composite
def uses(draw, net, limits):
    children = len(net.children())
    forwards = draw(st.sampled_from((1, 1, 2)))
    edit = draw(sometimes(st.sampled_from(("relu_", "mul_", "add_")), ""))
    checkpoint = draw(sometimes(sometimes(st.just(True), False), False))
    between = st.sampled_from(("train", "train", "eval", "statistics", "state_dict"))
    between = draw(sometimes(between, "") if forwards == 1 else st.just("") | between)
    switch = draw(sometimes(st.sampled_from(("eager", "plain")), "")) if forwards == 2 else ""
    if checkpoint:  # whose second forward must find the modes, statistics and backend of its first
        between = switch = ""
    return Use(
        entry=draw(st.sampled_from(("model", "model", "features", "slice", "parts", "layers", "part", "layer"))),
        at=draw(st.integers(0, children - 1)),
        forwards=forwards,
        accumulate=forwards == 2 and draw(st.booleans()),
        mode=draw(st.sampled_from(("backward", "backward", "twice", "input", "forward", "no_grad", "inference_mode"))),
        between=between,
        edit=edit,
        edited=draw(st.sampled_from(("output", "input"))) if edit else "output",
        checkpoint=checkpoint,
        autocast=draw(sometimes(sometimes(st.just(True), False), False)),
        copied=draw(sometimes(st.sampled_from(("deepcopy", "pickle")), "")),
        switch=switch,
    )


@st.composite
def hooks(draw, roles):
    kinds = ("forward", "forward_pre", "always_call", "full_backward", "full_backward_pre")
    kind = draw(st.sampled_from(kinds))
    # A gradient may be anybody's: nobody edits it in place.
    effects = ("look", "change") if "backward" in kind else ("look", "look", "change", "edit")
    return Hook(draw(st.sampled_from(list(roles))), kind, draw(st.sampled_from(effects)))


@st.composite
def changes(draw, roles):
    path = draw(st.sampled_from([path for path, role in roles.items() if role in REPLACEMENTS]))
    return Change(path, draw(st.sampled_from(list(REPLACEMENTS[roles[path]]))))


@st.composite
def cases(draw, tiny=False):
    """`tiny`: nets for an interpreter."""
    limits = SMALLER if tiny else LARGER
    net = draw(nets(limits).filter(lambda net: min(net.channels()) > 0))  # a compression may leave no channel
    roles = net.roles()
    norms = [path for path, role in roles.items() if role == "norm"]
    use = draw(uses(net, limits))
    # The masks of a block on its plain layers are others: with dropout, none runs so.
    drops = net.drop_rate > 0
    if drops:
        use = replace(use, entry=use.entry.replace("layers", "parts").replace("layer", "part"), switch="")
    # A norm that runs as PyTorch's module keeps its running statistics themselves for backward: of a forward in eval
    # it loses the gradients when one in training writes them. So there, all norms are to run fused.
    overwritten = use.between == "train" and use.forwards == 2 and not use.accumulate
    if overwritten:
        use = replace(use, entry="model", switch="")
    fused = drops or overwritten
    if fused:
        net = replace(net, plain=())
    return Case(
        net=net,
        image=draw(images(net, limits)),
        training=draw(st.booleans()),
        modes=tuple(draw(modes(path)) for path in draw(subset(norms))),
        changes=() if fused else draw(st.lists(changes(roles), max_size=2, unique_by=lambda c: c.path).map(tuple)),
        frozen=draw(subset([path for path in roles if path])),
        only=draw(sometimes(st.just(True), False)),
        hooks=() if fused or use.checkpoint else draw(st.lists(hooks(roles), max_size=2).map(tuple)),
        use=use,
    )
