"""PyTorch's own samples of its operators and modules."""

from __future__ import annotations

from typing import Any

import torch


def pytorchs_operators() -> list[Any]:
    """Every operator with samples of its arguments, each as an ``OpInfo``.

    The tools that bring them set a few things for all of torch, which are set back. And they ask
    the stack, at every sample, for the unittest that it is for: under pytest there is none, and
    the answer would take nine tenths of a test's time.
    """
    dtype = torch.get_default_dtype()
    precision = torch.backends.cudnn.rnn.fp32_precision
    from torch.testing._internal import common_utils
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo import core

    common_utils.extract_test_fn = core.extract_test_fn = lambda: None
    torch.set_default_dtype(dtype)
    torch.backends.cudnn.rnn.fp32_precision = precision
    return op_db
