"""The backends that a net can run on here, as tests of the contract see them.

On a machine without a GPU, Triton's kernels run in Triton's interpreter, and the CUDA kernels as the PTX that nvcc made
of them (tests/cuda/device.py); on a machine with one, these two stand-ins are left out for the GPU itself.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from densenet_fast import backends

from ..cuda.device import why_not
from ..oracle import error, rms_error

Values = dict[str, Tensor | None]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Backend(NamedTuple):
    """`name`: what nets are given for a backend; `dtype`: of nets and images. `on_ptx`: the operations are those of the
    CUDA kernels, interpreted. A `stand_in` takes a second for a step of a net of two layers."""

    name: str
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    on_ptx: bool = False
    stand_in: bool = False

    def put(self, model: nn.Module) -> nn.Module:
        """`model`, in this dtype, on this backend and its device."""
        return model.to(self.device, self.dtype).set_backend(self.name)

    def check(self, ours: Values, stock: Values, exact: Values) -> None:
        """Hold our values to the exact ones, which are PyTorch's in float64: in float64 each to 1e-10; in another dtype
        all together, as one vector, to twice the error of PyTorch's own layers in that dtype, plus one eps. (Of one
        small tensor, or of one whose terms all but cancel, two errors differ by chance.)"""
        assert ours.keys() == stock.keys() == exact.keys()
        for name, value in ours.items():
            assert (value is None) == (exact[name] is None), name
            assert value is None or (value.shape, value.dtype) == (exact[name].shape, stock[name].dtype), name
            assert value is None or value.is_floating_point() or torch.equal(value, exact[name]), name
        names = [name for name, value in ours.items() if value is not None and value.is_floating_point()]
        if self.dtype == torch.float64:
            wrong = {name: e for name in names if not (e := error(ours[name], exact[name])) < 1e-10}
            assert not wrong
        elif names:
            our, their = (
                rms_error(*(torch.cat([v[n].double().flatten() for n in names]) for v in (values, exact)))
                for values in (ours, stock)
            )
            assert our <= 2 * their + torch.finfo(self.dtype).eps, f"{our:.2e}, stock {their:.2e}"


def _param(id: str, backend: Backend, reason: str | None):
    marks = [pytest.mark.without_gpu] if backend.stand_in else []
    return pytest.param(backend, id=id, marks=[*marks, pytest.mark.skip(reason=reason)] if reason else marks)


def _why_not_interpreted() -> str | None:
    return None if torch.cuda.is_available() else backends.why_unavailable("triton", CPU)


BACKENDS = [
    _param("eager", Backend("eager", dtype=torch.float64), None),
    _param("native", Backend("native"), backends.why_unavailable("native", CPU)),
    _param("triton", Backend("triton", stand_in=True), _why_not_interpreted()),
    _param("cuda", Backend("eager", on_ptx=True, stand_in=True), why_not()),
]
if torch.cuda.is_available():
    BACKENDS += [
        _param("eager on the GPU", Backend("eager", GPU, torch.float64), None),
        *(
            _param(f"{name} on the GPU", Backend(name, GPU), backends.why_unavailable(name, GPU))
            for name in ("native", "triton")
        ),
    ]
