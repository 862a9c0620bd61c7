"""What a calibration measures, and what it makes of it on a GPU that memory or small work does not fill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.iteration.hours.speed import Line
from rlhf.sampling.protocol import SamplingParams
from rlhf.start import measuring
from rlhf.training.accelerator import make_accelerator

GPU, CPU = SimpleNamespace(type="cuda"), SimpleNamespace(type="cpu")


class Work:
    """On a clock of its own: `fixed` seconds and `each` a thing, ten times as long the first time of a size; no room
    for more than `most`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fixed: float, each: float, most: int = 1000) -> None:
        self.fixed, self.each, self.most, self.now, self.known = fixed, each, most, 0.0, set[int]()
        monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
        for clock in ("perf_counter", "process_time"):
            monkeypatch.setattr(measuring.time, clock, lambda: self.now)

    def __call__(self, things: int) -> float:
        if things > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += (self.fixed + self.each * things) * (1 if things in self.known else 10)
        self.known.add(things)
        return things


@pytest.mark.parametrize("device", [GPU, CPU], ids=["gpu", "cpu"])
def test_each_size_is_warmed_up(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line = measuring.two_sizes(Work(monkeypatch, 0.5, 0.125), (4, 32), device)
    assert (line.fixed, line.each) == pytest.approx((0.5, 0.125))


@pytest.mark.parametrize(("most", "wanted"), [(20, Line(0.5, 0.125)), (4, Line(0.0, 0.25))])
def test_what_memory_does_not_hold_is_halved(most: int, wanted: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line = measuring.two_sizes(Work(monkeypatch, 0.5, 0.125, most), (4, 32), GPU)
    assert (line.fixed, line.each) == pytest.approx((wanted.fixed, wanted.each)), "of one size it is in proportion"


def test_a_gpu_that_is_not_filled_takes_its_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measuring.two_sizes(Work(monkeypatch, 0.5, 0.0), (4, 32), GPU) == Line(0.5, 0.0)


def test_training_is_measured_in_the_mixed_precision(tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf.models import policy

    found, load = [], policy.load_policy

    def spied(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        model.register_forward_hook(lambda _model, _args, output: found.append(output.logits.dtype))
        return model

    monkeypatch.setattr(policy, "load_policy", spied)
    accelerator: Any = SimpleNamespace(
        device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    measuring._in_training(str(tiny_policy_path), None, None, accelerator)
    assert set(found) == {torch.bfloat16}, "as in training, and not in float32"


def test_training_is_measured_on_packed_rows(tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As stages train, whose attention is another one than that of a padded batch."""
    from rlhf.models import policy

    found, load = [], policy.load_policy

    def spied(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        backbone = model.get_decoder()
        backbone.register_forward_pre_hook(lambda _model, _args, given: found.append(given), with_kwargs=True)
        return model

    monkeypatch.setattr(policy, "load_policy", spied)
    for adapter in (None, {"r": 2}):
        found.clear()
        measuring._in_training(str(tiny_policy_path), adapter, None, make_accelerator())
        rows = [given["packed"].lengths for given in found]
        assert rows == [[measuring.ROW_TOKENS] * size for size in (1, 1, 3, 3)], (
            "one to warm up, and one, of both sizes"
        )


def test_a_base_in_4_bit_is_measured_so(tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    from rlhf.models import policy

    kinds, load = [], policy.load_base

    def spied(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        kinds.append(any(type(module).__name__ == "Linear4bit" for module in model.modules()))
        return model

    monkeypatch.setattr(policy, "load_base", spied)
    measuring.measure(str(tiny_policy_path), {"r": 2}, "nf4", [], SamplingParams(max_new_tokens=4))
    assert kinds == [True, True], "the model that writes and scores, and the one in training"
