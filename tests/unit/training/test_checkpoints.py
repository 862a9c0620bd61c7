"""States of a training: what comes back, what is kept, what a kill may leave."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.errors import InputError
from rlhf.stage import open_stage
from rlhf.training.accelerator import make_accelerator
from rlhf.training.checkpoints import Checkpoints, _random_state, _set_random_state
from rlhf.training.config import OptimizerConfig
from rlhf.training.kept import kept_states
from rlhf.training.step import Batch, Stepper

CONFIG = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0)


class Toy(nn.Module):
    """A trained layer used twice (tied) beside a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trained, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
        self.again = self.trained

    def forward(self, batch: Batch) -> Tensor:
        return self.again(self.frozen(self.trained(batch["x"])))


def _loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    noise = torch.rand(()) + random.random() + np.random.rand()  # what a user's code may do
    return (model(batch).square().sum() - noise) ** 2, {}


def _train(stepper: Stepper, steps: int) -> list[float]:
    batch = {"x": torch.arange(6.0).view(2, 3)}
    return [stepper.step([(batch, 1.0)], _loss, 2.0, 1e-2).means["loss"] for _ in range(steps)]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "random-0.pt", "state.json"])
def test_a_state_that_is_cut_off_is_told_and_the_one_before_it_is_left(tmp_path: Path, file: str) -> None:
    accelerator = make_accelerator(seed=3)
    stepper = Stepper(Toy(), CONFIG, accelerator)
    checkpoints = Checkpoints(tmp_path, stepper, accelerator)
    for step in (1, 2):
        _train(stepper, 1)
        checkpoints.save(step, {"step": step})
    damaged = tmp_path / "step-000002" / file
    damaged.write_bytes(damaged.read_bytes()[:20])
    again = Checkpoints(tmp_path, Stepper(Toy(), CONFIG, accelerator), accelerator)
    with pytest.raises(
        InputError, match=r"step-000002 cannot be read .* remove that folder to go on from the state before"
    ):
        again.restore()
    shutil.rmtree(tmp_path / "step-000002")
    assert again.restore() == {"step": 1}


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "random-0.pt", "state.json"])
def test_a_state_in_which_the_disk_flipped_a_bit_is_not_gone_on_from(tmp_path: Path, file: str) -> None:
    """A bit in the middle of the numbers: every format reads them as others."""
    accelerator = make_accelerator(seed=3)
    stepper = Stepper(Toy(), CONFIG, accelerator)
    _train(stepper, 1)
    Checkpoints(tmp_path, stepper, accelerator).save(1, {"beta": 0.25})
    damaged = tmp_path / "step-000001" / file
    content = bytearray(damaged.read_bytes())
    place = content.index(b"0.25") + 3 if file == "state.json" else len(content) - 5
    if file.endswith(".pt"):  # a number of a tensor in its archive
        place = (
            content.index(torch.load(damaged, weights_only=True)["state"][0]["exp_avg"].numpy().tobytes())
            if (file == "optimizer.pt")
            else content.index(torch.load(damaged, weights_only=True)["torch"].numpy().tobytes()) + 40
        )
    content[place] ^= 1
    damaged.write_bytes(content)
    again = Checkpoints(tmp_path, Stepper(Toy(), CONFIG, accelerator), accelerator)
    with pytest.raises(InputError, match=rf"cannot be read \({file} is not what was written\); remove that folder to "):
        again.restore()


@pytest.mark.parametrize("what", ["weight", "moment"])
def test_a_state_that_is_not_finite_is_neither_written_nor_taken_up(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = make_accelerator(seed=3)
    stepper = Stepper(Toy(), CONFIG, accelerator)
    checkpoints = Checkpoints(tmp_path, stepper, accelerator)
    _train(stepper, 1)
    weight = next(p for p in stepper.model.parameters() if p.requires_grad)
    (weight.data if what == "weight" else stepper.optimizer.state[weight]["exp_avg"])[0, 0] = math.nan
    with pytest.raises(InputError, match=r"the state before step 1 has values in .* that are not finite; start again"):
        checkpoints.save(1, {})
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as old:  # as an earlier release wrote it
        old.setattr("rlhf.training.checkpoints.require_finite", lambda *given: None)
        checkpoints.save(1, {})
    with pytest.raises(
        InputError, match=r"step-000001 cannot be read .*not finite.*remove that folder to start the tr"
    ):
        Checkpoints(tmp_path, Stepper(Toy(), CONFIG, accelerator), accelerator).restore()


def test_a_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    accelerator = make_accelerator(seed=3)
    stepper = Stepper(Toy(), CONFIG, accelerator)
    checkpoints = Checkpoints(tmp_path, stepper, accelerator)
    _train(stepper, 3)
    checkpoints.save(3, {"beta": 0.1 + 0.2, "best": -math.inf, "names": ["a"]})
    whole = _train(stepper, 3)
    end = {name: p.clone() for name, p in stepper.model.named_parameters()}

    again = Stepper(Toy(), CONFIG, make_accelerator(seed=99))
    state = Checkpoints(tmp_path, again, accelerator).restore()
    assert state == {"beta": 0.1 + 0.2, "best": -math.inf, "names": ["a"]}
    assert again.steps == 3
    assert _train(again, 3) == whole
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, end[name])


@pytest.mark.parametrize("written", [None, True])
@pytest.mark.parametrize("read", [None, True])
def test_a_training_goes_on_from_a_state_of_either_kind_of_adamw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool | None, read: bool | None
) -> None:
    """Torch's fused kind and its plain one, which earlier releases stepped by; it goes on with its own."""
    adamw = torch.optim.AdamW
    accelerator = make_accelerator(seed=3)

    def stepper(fused: bool | None) -> Stepper:
        monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: adamw(*a, **{**k, "fused": fused}))
        return Stepper(Toy(), CONFIG, accelerator)

    first = stepper(written)
    _train(first, 3)
    Checkpoints(tmp_path, first, accelerator).save(3, {})
    whole = _train(first, 3)
    again = stepper(read)
    Checkpoints(tmp_path, again, accelerator).restore()
    assert [group["fused"] for group in again.optimizer.param_groups] == [read, read]
    assert _train(again, 3) == pytest.approx(whole, rel=1e-5)
    assert [float(state["step"]) for state in again.optimizer.state.values()] == [6, 6]


def test_the_newest_are_kept_and_half_a_state_is_none(tmp_path: Path) -> None:
    accelerator = make_accelerator()
    stepper = Stepper(Toy(), CONFIG, accelerator)
    checkpoints = Checkpoints(tmp_path / "states", stepper, accelerator, keep=2)
    assert checkpoints.restore() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"step": step})
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["step-000010", "step-000015"]
    (tmp_path / "states" / "step-000020.partial").mkdir()
    assert checkpoints.restore() == {"step": 15}
    assert checkpoints.kept() == [{"step": 10}, {"step": 15}]
    checkpoints.save(20, {"step": 20})
    assert checkpoints.restore() == {"step": 20}


def test_a_state_of_more_processes_is_taken_up(tmp_path: Path) -> None:
    accelerator = make_accelerator()
    checkpoints = Checkpoints(tmp_path, Stepper(Toy(), CONFIG, accelerator), accelerator)
    checkpoints.save(1, {"step": 1})
    (tmp_path / "step-000001" / "random-1.pt").touch()
    assert checkpoints.restore() == {"step": 1}


@pytest.mark.parametrize(
    ("change", "decides"),
    [
        ({"mixed_precision": "bf16"}, True),
        ({"zero_stage": 3}, True),
        ({"zero_stage": None}, True),
        ({"num_processes": 2}, True),
        ({"num_processes": 2, "zero_stage": None}, False),
    ],
)
def test_states_of_another_launch_go_on_only_where_that_rounds(
    tmp_path: Path, change: dict[str, Any], decides: bool
) -> None:
    """Not: other numbers, or files that DeepSpeed cannot read."""

    def kept(**changed: Any) -> Any:
        first = {"mixed_precision": "no", "num_processes": 1, "zero_stage": 2 if decides else None}
        launch = first | changed
        stage = launch.pop("zero_stage")
        plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
        accelerator: Any = SimpleNamespace(**launch, state=SimpleNamespace(deepspeed_plugin=plugin))
        return kept_states(open_stage(CONFIG, output=tmp_path / "out"), accelerator)

    assert kept() == kept() and kept().values != kept(**change).values
    changed = {name for name, value in kept(**change).values.items() if value != kept().values[name]}
    assert bool(changed - set(kept(**change).rounding)) is decides


def test_the_random_state_of_its_own_gpu_is_all_that_a_process_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sees fewer of them, or none, goes on from it."""
    taken: list[Tensor] = []
    own = torch.tensor([3], dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [own] * 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: own)
    monkeypatch.setattr(torch.cuda, "set_rng_state", taken.append)
    state = _random_state()
    _set_random_state(state)
    assert taken == [own]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _set_random_state(state)
    assert taken == [own]
