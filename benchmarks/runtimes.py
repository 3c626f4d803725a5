"""Inference by other runtimes from an exported net: modules that take a stock net's weights and return its outputs.

Each is set up as it is fastest: on the CPU, in float32, with PyTorch's number of threads. ONNX Runtime 1.24 keeps a
DenseNet in its blocked layout only if it is exported at opset 14 or below; from 15 on it reorders 123 times.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 14


class Exported(nn.Module):
    """A net for inference on [N, 3, H, W]; compiled by `prepare` for each shape when that is first seen."""

    def __init__(self, net: nn.Module, prepare: Callable[[bytes], Callable[[Any], Any]]):
        super().__init__()
        self.net = net
        self._prepare = prepare
        self._prepared: dict[torch.Size, Callable[[Any], Any]] = {}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.load_state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape not in self._prepared:
            self._prepared[x.shape] = self._prepare(onnx(self.net, x))
        return torch.from_numpy(self._prepared[x.shape](x.numpy()))


def onnx(net: nn.Module, x: Tensor) -> bytes:
    """The net in ONNX, for inputs of x's shape."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx's, of its older exporter, which writes this opset
        torch.onnx.export(net.eval(), (x.clone(),), file, opset_version=OPSET, dynamo=False)
    return file.getvalue()


def onnxruntime(model: bytes) -> Callable[[Any], Any]:
    """By ONNX Runtime; its threads wait awake in a call, and stop when it ends, for the sake of who runs next."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())
    return lambda x: session.run(None, {name: x})[0]


def openvino(model: bytes) -> Callable[[Any], Any]:
    """By OpenVINO; its output is copied, for the next call overwrites it."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(io.BytesIO(model)),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )
    request = compiled.create_infer_request()
    return lambda x: request.infer({0: x})[compiled.output(0)].copy()


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}
