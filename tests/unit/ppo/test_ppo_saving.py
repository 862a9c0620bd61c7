"""What a PPO stage leaves on disk: the best policies that are still wanted, and sample answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from rlhf.data.rows import Prompt
from rlhf.ppo.rollout import Rollout
from rlhf.ppo.saving import SAMPLES, Saving
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.step import Stepper


def _saving(folder: Path) -> Saving:
    accelerator = make_accelerator()

    def save_policy(path: Path) -> None:
        path.mkdir()
        (path / "weights").write_text(path.name)

    return Saving(folder, Stepper(nn.Linear(2, 1), OptimizerConfig(), accelerator), accelerator, save_policy, keep=2)


def _state(best: int) -> dict[str, Any]:
    return {"history": {"best_iteration": best}}


def _there(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "resume").iterdir())


def test_a_best_policy_stays_as_long_as_a_state_names_it(tmp_path: Path) -> None:
    """A state that is gone back to must find its best, also where a later one was better."""
    saving = _saving(tmp_path)
    saving.keep_best(0)
    saving.save(10, _state(best=0))
    saving.keep_best(15)
    saving.save(20, _state(best=15))
    assert _there(tmp_path) == ["best-000000", "best-000015", "step-000010", "step-000020"]
    saving.save(30, _state(best=15))
    assert _there(tmp_path) == ["best-000015", "step-000020", "step-000030"]
    assert saving.restore() == {"iteration": 30} | _state(best=15)
    saving.take_best(15)
    assert (tmp_path / "checkpoint" / "weights").read_text() == "best-000015.partial"
    assert (tmp_path / "resume" / "best-000015").is_dir(), "a kill now would need it again"


def test_a_best_policy_of_a_broken_off_attempt_is_written_again(tmp_path: Path) -> None:
    saving = _saving(tmp_path)
    for name in ("best-000005", "best-000005.partial"):
        (tmp_path / "resume" / name).mkdir(parents=True)
    saving.keep_best(5)
    assert (tmp_path / "resume" / "best-000005" / "weights").exists() and len(_there(tmp_path)) == 1


def test_the_first_answers_of_each_evaluation(tmp_path: Path) -> None:
    saving = _saving(tmp_path)
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": "hello"}]) for i in range(SAMPLES + 3)]
    rollouts = [Rollout((1,), (2,), True, 0.5, 2.0, 0.5, False, f"answer {i}") for i in range(len(prompts))]
    for step in (0, 5):
        saving.log_samples(step, prompts, rollouts)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == [f"p{i}" for i in range(SAMPLES)] * 2
    assert rows[-1]["step"] == 5 and rows[-1]["answer"] == f"answer {SAMPLES - 1}" and rows[-1]["safety"] == 2.0
    assert saving.restore() is None
    assert (tmp_path / "samples.jsonl").read_text() == "", "without a state all begins again"
