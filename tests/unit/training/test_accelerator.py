"""Which precision a process computes in where nobody says, and where somebody does."""

from __future__ import annotations

import pytest
import torch

from rlhf.launch import PRECISION_UNSAID
from rlhf.training.accelerator import mixed_precision


@pytest.mark.parametrize(
    ("gpu", "bf16", "said", "left_open", "wanted"),
    [
        (True, True, None, False, "bf16"),
        (True, False, None, False, "no"),
        (True, True, "no", True, "bf16"),
        (True, True, "no", False, None),
        (True, True, "fp16", False, None),
        (False, False, None, False, None),
        (False, False, "no", True, None),
    ],
)
def test_bf16_on_a_gpu_unless_somebody_says_otherwise(
    gpu: bool, bf16: bool, said: str | None, left_open: bool, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    for name, value in (("ACCELERATE_MIXED_PRECISION", said), (PRECISION_UNSAID, "true" if left_open else None)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert mixed_precision() == wanted
