"""torch.library.opcheck for operators without autograd, as all of the backends' are."""

from typing import Any

import torch


def opcheck(operation: Any, args: Any) -> None:
    """What changes is what the schema says, and the fake has the result's shape, dtype and strides. Opcheck's other
    parts are about gradients, which these operators do not have, and take nine tenths of its time."""
    torch.library.opcheck(operation, args, test_utils=("test_schema", "test_faketensor"))
