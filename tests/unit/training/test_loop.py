"""The optimisation loop: what must not matter (micro-batches, row order) and what must (bad numbers, no rows)."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlhf.errors import InputError
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.kept import States
from rlhf.training.loop import Task, micro_batches, steps_of, train
from rlhf.training.step import Stepper, make_optimizer

Row = tuple[list[float], float]
ROWS: list[Row] = [([float(i % 7), float(i % 3), 1.0][: 1 + i % 3], 0.5 * (i % 5)) for i in range(22)]


def _collate(rows: list[Row]) -> dict[str, Tensor]:
    width = max(len(x) for x, _ in rows)
    padded = torch.tensor([x + [0.0] * (width - len(x)) + [0.0] * (3 - width) for x, _ in rows])
    return {"x": padded, "y": torch.tensor([y for _, y in rows])}


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    error = model(batch["x"]).squeeze(-1) - batch["y"]
    return error.square().sum(), {"error": error.abs().sum()}


TASK = Task(_collate, _loss, weight=lambda row: 1.0, length=lambda row: len(row[0]))


def _run(folder: Path, rows: list[Row] = ROWS, **settings: float) -> tuple[nn.Linear, list[float]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    config = OptimizerConfig(**{"learning_rate": 0.05, "batch_size": 8, "micro_batch_size": 8, "epochs": 2, **settings})
    accelerator = make_accelerator()
    result = train(model, rows, TASK, config, accelerator, MetricsLog(folder, accelerator))
    return model, result.losses


def test_micro_batch_size_changes_nothing(tmp_path: Path) -> None:
    """22 rows in steps of 8, 8, 6: accumulating 1, 3 (uneven) or 8 rows at a time gives the same steps."""
    reference, losses = _run(tmp_path)
    for size in (1, 3):
        model, other = _run(tmp_path, micro_batch_size=size)
        assert other == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(model.weight, reference.weight, rtol=1e-5, atol=1e-6)


def test_equals_a_plain_adamw_loop(tmp_path: Path) -> None:
    model, losses = _run(tmp_path, epochs=1)
    torch.manual_seed(0)
    plain = nn.Linear(3, 1)
    config = OptimizerConfig(learning_rate=0.05, batch_size=8, epochs=1)
    optimizer = torch.optim.AdamW(
        [{"params": [plain.weight], "weight_decay": 0.1}, {"params": [plain.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-5,
    )
    expected = []
    for step, rows in enumerate(steps_of(ROWS, config, seed=0)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step, 3)
        batch = _collate(rows)
        loss = (plain(batch["x"]).squeeze(-1) - batch["y"]).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.weight, plain.weight)


@pytest.mark.parametrize(("processes", "count"), [(1, 1), (2, 1), (2, 3), (3, 4)])
def test_micro_batches_part_the_rows(processes: int, count: int) -> None:
    rows = ROWS[:5]
    parts = [micro_batches(rows, count, p, processes, TASK.length) for p in range(processes)]
    assert all(len(part) == count for part in parts)
    assert sorted(map(repr, rows)) == sorted(repr(r) for part in parts for micro in part for r in micro)


def test_processes_get_about_the_same_work() -> None:
    """A step waits for the process whose rows are longest together; no micro-batch is larger than it may be."""
    lengths = [60, 61, 70, 80, 90, 100, 110, 120, 150, 160, 200, 210, 250, 256, 256, 400]
    for rows, processes, count in [(lengths, 2, 4), (lengths, 2, 1), (lengths[3:], 2, 4), (lengths, 4, 2)]:
        parts = [micro_batches(rows, count, p, processes, lambda row: row) for p in range(processes)]
        together = [sum(map(sum, part)) for part in parts]
        assert max(together) <= 1.08 * sum(together) / processes, together
        assert max(len(micro) for part in parts for micro in part) <= math.ceil(len(rows) / (count * processes))
        assert all(sorted(part, key=lambda micro: micro[-1]) == part for part in parts), "rows of similar length"


def test_every_epoch_sees_every_row_in_another_order() -> None:
    config = OptimizerConfig(batch_size=8, epochs=2)
    numbered = list(range(22))
    steps = list(steps_of(numbered, config, seed=3))
    first, second = ([i for step in steps[a : a + 3] for i in step] for a in (0, 3))
    assert sorted(first) == sorted(second) == numbered
    assert first != second


def test_non_finite_steps_change_nothing_and_stop_the_third_time(tmp_path: Path) -> None:
    good, poisoned = ([1.0, 1.0, 1.0], 1.0), ([1.0, 1.0, 1.0], float("nan"))
    model, losses = _run(tmp_path, rows=[poisoned], epochs=2)
    assert len(losses) == 2
    torch.manual_seed(0)
    torch.testing.assert_close(model.weight, nn.Linear(3, 1).weight, rtol=0, atol=0)
    assert [row["skipped"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    with pytest.raises(InputError, match="3 steps in a row"):
        _run(tmp_path, rows=[poisoned, good], epochs=3)


def test_a_step_that_overflows_in_fp16_is_skipped_and_lowers_the_loss_scale() -> None:
    """torch's scaler refuses a second step on gradients whose overflow it was not told of."""
    accelerator = make_accelerator()
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"  # accelerate has it on a GPU alone
    try:
        stepper = Stepper(nn.Linear(3, 1), OptimizerConfig(learning_rate=0.05), accelerator)
        batch = _collate(ROWS[:4])
        bad = {"x": batch["x"] * 1e30, "y": batch["y"]}
        taken = [stepper.step([(b, 1.0)], _loss, 4.0, 0.05).taken for b in (bad, batch, bad, batch)]
    finally:
        accelerator.state._mixed_precision = "no"
    assert taken == [False, True, False, True] and stepper.skipped == 2
    assert scaler.get_scale() == 2.0**6


def test_no_rows_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        _run(tmp_path, rows=[])


def test_weight_decay_is_on_matrices_only() -> None:
    optimizer = make_optimizer(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), OptimizerConfig())
    decayed = {p.ndim for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    plain = {p.ndim for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert (decayed, plain) == ({2}, {1})


@pytest.mark.parametrize("steps", [1, 20])
def test_the_fused_adamw_steps_as_the_plain_one(steps: int) -> None:
    """Weights of many sizes (vectorised and left over), gradients of many magnitudes, some 0."""
    kinds = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(37, 64), nn.LayerNorm(64), nn.Linear(64, 5))
        optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.01, weight_decay=0.1))
        assert optimizer.defaults["fused"]
        for group in () if fused else optimizer.param_groups:
            group["fused"] = None
        for _ in range(steps):
            for p in model.parameters():
                p.grad = torch.randn_like(p) * 10 ** torch.randint(-6, 3, p.shape) * (torch.rand_like(p) > 0.1)
            optimizer.step()
        moments = [optimizer.state[p][name] for p in model.parameters() for name in ("exp_avg", "exp_avg_sq", "step")]
        kinds.append([p.detach() for p in model.parameters()] + moments)
    torch.testing.assert_close(*kinds, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_weights_than_float32_are_stepped_by_the_plain_adamw(dtype: torch.dtype) -> None:
    assert make_optimizer(nn.Linear(3, 2, dtype=dtype), OptimizerConfig()).defaults["fused"] is None


def test_a_training_killed_after_its_last_step_still_says_what_it_skipped(tmp_path: Path) -> None:
    rows = [([1.0], float("nan")), *ROWS[:15]]
    config = OptimizerConfig(batch_size=8, micro_batch_size=8)
    for _ in range(2):  # the second finds the state of the last step and takes none
        accelerator = make_accelerator()
        states = States(tmp_path / "states", every=1)
        log = MetricsLog(tmp_path, accelerator)
        result = train(nn.Linear(3, 1), rows, TASK, config, accelerator, log, states=states)
        assert (result.steps, result.skipped) == (2, 1)


def test_the_optimizer_is_gone_when_the_training_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it in a stage, with the same accelerator, has the memory of AdamW's moments."""
    made: list[weakref.ref[torch.optim.Optimizer]] = []

    def make(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
        optimizer = make_optimizer(model, config)
        made.append(weakref.ref(optimizer))
        return optimizer

    monkeypatch.setattr("rlhf.training.step.make_optimizer", make)
    accelerator = make_accelerator()
    train(nn.Linear(3, 1), ROWS, TASK, OptimizerConfig(), accelerator)
    gc.collect()
    assert made[0]() is None
