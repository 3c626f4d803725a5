"""What the fuzzer draws: plain data that prints itself as the code that makes it, defaults left out."""

from dataclasses import dataclass, fields


class _Brief:
    def __repr__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"


@dataclass(frozen=True, repr=False)
class Net(_Brief):
    """Arguments of a DenseNet. `efficient`, `plain`: numbers of the blocks that recompute, that run plain layers."""

    growth: int = 1
    blocks: tuple[int, ...] = (1,)
    bn_size: int | None = 1
    init: int = 2
    small: bool = True
    compression: float = 0.5
    drop_rate: float = 0.0
    in_channels: int = 1
    classes: int = 1
    efficient: tuple[int, ...] = ()
    plain: tuple[int, ...] = ()
    torchvision: bool = False  # our class with torchvision's signature

    def roles(self) -> dict[str, str]:
        """Every module's path, and what it is."""
        roles = {"": "model", "features": "trunk", "classifier": "classifier"}
        for name in self.children():
            path, kind = f"features.{name}", name.rstrip("0123456789_")
            roles[path] = {"denseblock": "block", "norm_final": "norm"}.get(kind, kind)
            if kind == "transition":
                roles |= {f"{path}.{part}": part for part in ("norm", "relu", "conv", "pool")}
            elif kind == "denseblock":
                for i in range(self.blocks[int(name[-1]) - 1]):
                    layer = f"{path}.denselayer{i + 1}"
                    parts = ["norm1", "relu1", "conv1", *([] if self.bn_size is None else ["norm2", "relu2", "conv2"])]
                    roles |= {layer: "layer"} | {f"{layer}.{part}": part[:-1] for part in parts}
        return roles | {f"features.{self.children()[-1]}": "norm"}

    def children(self) -> list[str]:
        """Names of the trunk's children, in order."""
        names = ["conv0"] if self.small else ["conv0", "norm0", "relu0", "pool0"]
        for i in range(1, len(self.blocks) + 1):
            names += [f"denseblock{i}", f"transition{i}"]
        return [*names[:-1], "norm_final" if self.small else "norm5"]

    def channels(self) -> list[int]:
        """Channels at the input of each child."""
        found, c = [self.in_channels], self.init
        if not self.small:
            found += [c] * 3
        for i, layers in enumerate(self.blocks):
            found.append(c)
            c += layers * self.growth
            found.append(c)
            if i + 1 < len(self.blocks):
                c = int(c * self.compression)
        return found

    def least_size(self) -> int:
        """The smallest image of which the poolings leave a pixel."""
        return 2 ** (len(self.blocks) - 1) if self.small else 2 ** (len(self.blocks) + 1) - 3


@dataclass(frozen=True, repr=False)
class Image(_Brief):
    n: int = 1
    h: int = 1
    w: int = 1
    layout: str = "nchw"  # channels_last, cropped, gray (expanded), strided (every second of a batch)
    needs_grad: bool = False


@dataclass(frozen=True, repr=False)
class Mode(_Brief):
    """One norm's own settings. `training` None: the net's. `track`: "no" without buffers, "off" the attribute alone."""

    path: str = ""
    training: bool | None = None
    track: str = "yes"
    momentum: float | None = 0.1
    affine: bool = True
    eps: float = 1e-5
    zero_gamma: bool = False  # of the first channel


@dataclass(frozen=True, repr=False)
class Change(_Brief):
    """A child replaced by something of the `kind` (build.py)."""

    path: str = ""
    kind: str = "Identity"


@dataclass(frozen=True, repr=False)
class Hook(_Brief):
    """`kind`: forward, forward_pre, always_call, full_backward, full_backward_pre. `effect`: look, change, edit."""

    path: str = ""
    kind: str = "forward"
    effect: str = "look"


@dataclass(frozen=True, repr=False)
class Use(_Brief):
    """What is called and what happens around it (uses.py). `at`: which child of the trunk, where `entry` needs one."""

    entry: str = "model"  # features, slice, parts, layers, part, layer
    at: int = 0
    forwards: int = 1
    accumulate: bool = False  # backward after each forward, not after both
    mode: str = "backward"  # twice (retain_graph), input (autograd.grad), forward, no_grad, inference_mode
    between: str = ""  # after each forward: train, eval, statistics, state_dict
    edit: str = ""  # in place, behind the forward: relu_, mul_, add_
    edited: str = "output"  # or input
    checkpoint: bool = False
    autocast: bool = False
    copied: str = ""  # deepcopy, pickle
    switch: str = ""  # backend of the second forward


@dataclass(frozen=True, repr=False)
class Case(_Brief):
    net: Net = Net()
    image: Image = Image()
    training: bool = True
    modes: tuple[Mode, ...] = ()
    changes: tuple[Change, ...] = ()
    frozen: tuple[str, ...] = ()  # paths of modules and parameters
    only: bool = False  # `frozen` is what trains, all else is frozen
    hooks: tuple[Hook, ...] = ()
    use: Use = Use()
