"""A GPU that torch cannot use: nothing else would say why a run takes days."""

from __future__ import annotations

import pytest

from rlhf.start.machine import this_machine
from rlhf.training import accelerator


@pytest.mark.parametrize(("cuda", "why"), [(None, "built without CUDA"), ("13.0", "its CUDA 13.0 and the driver")])
def test_a_gpu_that_torch_cannot_use_is_said(
    cuda: str | None, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    accelerator.make_accelerator()
    assert "GPU" not in capsys.readouterr().err, "there is none"
    for module in ("rlhf.training.accelerator", "rlhf.start.machine"):
        monkeypatch.setattr(f"{module}.has_gpu", lambda: True)
    accelerator.make_accelerator()
    said = capsys.readouterr().err
    assert said.startswith("GPU: there is one, and torch ") and why in said
    assert this_machine().gpus == 0 and capsys.readouterr().err == said
