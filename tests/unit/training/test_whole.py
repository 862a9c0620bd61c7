"""What cannot be partitioned is refused by whatever would partition it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from accelerate import Accelerator
from torch import nn

from rlhf.errors import InputError
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Stepper
from rlhf.training.whole import WholeModel


@pytest.mark.parametrize(
    "partition", [WholeModel, lambda model, accelerator: Stepper(model, OptimizerConfig(), accelerator)]
)
def test_weights_in_4_bit_are_refused_under_zero_3(
    partition: Callable[[nn.Module, Accelerator], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Linear(8, 8), bitsandbytes.nn.Linear4bit(8, 8, quant_type="nf4"))
    accelerator = make_accelerator()
    partition(model, accelerator)
    monkeypatch.setattr("rlhf.training.whole.is_partitioned", lambda accelerator: True)
    with pytest.raises(InputError, match=r"quantization: weights in 4 bit cannot be partitioned .*ZeRO-3"):
        partition(model, accelerator)
