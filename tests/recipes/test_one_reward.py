"""Helpfulness alone, without a safety model: every recipe that takes a reward runs, and says null where safety is.

The reward model's context is shorter than most answers, which ended PPO before.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.metrics import read_metrics
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rejection.pool import read_completions

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes/evaluation"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes/studies"))
import evaluate
import ppo
import rejection_sampling
import temperature_sweep


@pytest.fixture(scope="module")
def given(tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Options that all recipes share; the reward model takes 64 tokens, an answer may have 60."""
    folder = tmp_path_factory.mktemp("one_reward")
    start = folder / "policy"
    shutil.copytree(tiny_policy_path, start)
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    RewardModel.from_policy(start, safety_head=False, seed=0).save(folder / "reward", load_tokenizer(start))
    rows = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}], "domain": domain}
        for i, domain in enumerate(["helpfulness", "safety"] * 4)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "policy": tiny_policy_path,
        "prompts": folder / "prompts.jsonl",
        "helpfulness": folder / "reward",
        "sampling.max_new_tokens": 60,
    }


def start(recipe, config_class, output: Path, **options: object) -> Path:
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    recipe.main(parse_config(config_class, ["--output", str(output), *arguments]))
    return output


def is_said_cut(output: Path) -> bool:
    """Whether the stage says that the reward model's context was too short for most of what it scored."""
    said = json.loads((output / "stage.json").read_text())["closing"]["suspicious"]
    return any(line.startswith("helpfulness scored ") and "cut to its context" in line for line in said)


@pytest.mark.parametrize(
    ("config_class", "needed"),
    [
        (rejection_sampling.RejectionSamplingConfig, ("fine_tune_from",)),
        (ppo.PPORecipeConfig, ("validation_prompts",)),
        (temperature_sweep.TemperatureSweepConfig, ()),
        (evaluate.EvaluateConfig, ("name",)),
    ],
)
@pytest.mark.parametrize(
    ("option", "value"), [("threshold", 0.3), ("threshold_from", "sweep.json"), ("centre", "false")]
)
def test_a_gate_without_safety_scores_to_read_is_refused(config_class, needed, option: str, value: object) -> None:
    options = {"output": "o", "policy": "p", "prompts": "p", "helpfulness": "h", **dict.fromkeys(needed, "n")}
    options[f"gate.{option}"] = value
    with pytest.raises(InputError, match=rf"gate\.{option}: there is no safety model .* name one with safety"):
        parse_config(config_class, [part for name, given in options.items() for part in (f"--{name}", str(given))])


def test_rejection_sampling(given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"fine_tune_from": given["policy"], "num_samples": 8, "sampling.top_k": 20, **given}
    out = start(rejection_sampling, rejection_sampling.RejectionSamplingConfig, tmp_path / "cut", **options)
    rows = read_completions(out / "completions.parquet")
    assert {row.safety for row in rows} == {None} and all(row.reward == row.helpfulness for row in rows)
    figures = json.loads((out / "selection.json").read_text())
    assert figures["mean_safety"] is figures["gated_share"] is None and figures["selected"] > 0
    assert figures["too_long"]["prompts"] == {"helpfulness": 8} and figures["too_long"]["scored_cut"] > 0
    assert is_said_cut(out)
    assert "helpfulness: 8 of 8 prompts leave no room for 60 new tokens in its context of 64" in capsys.readouterr().err


def test_ppo_goes_on_past_an_answer_longer_than_the_reward_model_s_context(given, tmp_path: Path) -> None:
    options = {"validation_prompts": given["prompts"], "ppo.iterations": 2, "ppo.batch_size": 8, **given}
    options |= {"ppo.optimizer.batch_size": 4, "ppo.evaluate_every": 1}
    out = start(ppo, ppo.PPORecipeConfig, tmp_path / "out", **options)
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all("safety" not in row and "gate_share" not in row for row in rows)
    assert rows[0]["too_long_share"] > 0 and is_said_cut(out)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {row["safety"] for row in samples} == {None}
    assert json.loads((out / "ppo.json").read_text())["too_long"] == {"prompts": {"helpfulness": 16, "value_from": 16}}


def test_sweep_and_evaluation(given, tmp_path: Path) -> None:
    options = {"temperatures": "[0.7, 1.0]", "num_samples": 3, "best_of": 2, **given}
    out = start(temperature_sweep, temperature_sweep.TemperatureSweepConfig, tmp_path / "sweep", **options)
    assert json.loads((out / "sweep.json").read_text())["best"]["temperature"] in (0.7, 1.0) and is_said_cut(out)
    assert {row.safety for row in read_completions(out / "completions.parquet")} == {None}
    out = start(evaluate, evaluate.EvaluateConfig, tmp_path / "sft", name="sft", **given)
    assert is_said_cut(out)
    options = {"baseline_evaluation": out, "name": "again", **given}
    again = start(evaluate, evaluate.EvaluateConfig, tmp_path / "again", **options)
    figures = json.loads((again / "evaluation.json").read_text())
    assert (
        figures["proxy_safety"] is figures["gate"] is None and figures["proxy_reward"] == figures["proxy_helpfulness"]
    )
    assert figures["judge"] == "proxy" and figures["win_rate_vs_sft"] == 0.5
