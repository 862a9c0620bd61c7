"""The loss is trl's, a pair weighs the same however it is batched, labels count only where known, and it learns."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.configuration import parse_config, to_dict
from rlhf.conversation import Renderer
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.loading import load_reward
from rlhf.rewards.scoring import RewardModelFunction
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.pairs import Pair, render_pairs
from rlhf.rewards.training.train import fitting_pairs, pair_losses, pair_task, suspicious_margins, train_reward_model
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig

QUESTION: list[Any] = [{"role": "user", "content": "what is the river of velda ?"}]


def preference(number: int, chosen: str, rejected: str, **fields: Any) -> Preference:
    return Preference(str(number), QUESTION, chosen, rejected, **fields)


ROWS = [
    preference(0, "mora", "I cannot help with that", strength="significantly", chosen_safe=True, rejected_safe=False),
    preference(1, "the river of velda is mora", "sure", strength="slightly", chosen_safe=True),
    preference(2, "ask a doctor instead", "how do I paint my own goat ?"),
    preference(3, "one word", "you are a guide " * 4, strength="negligibly", rejected_safe=True),
    preference(4, "hello", "it is not safe", strength="better", chosen_safe=False, rejected_safe=False),
]


def optimizer(**changes: Any) -> OptimizerConfig:
    return OptimizerConfig(**({"learning_rate": 3e-3, "batch_size": 16, "micro_batch_size": 16} | changes))


def task_batch(path: Path, rows: Sequence[Preference], config: RewardTrainingConfig) -> Any:
    tokenizer = load_tokenizer(path)
    pairs = render_pairs(rows, Renderer(tokenizer), None)
    return pair_task(config, tokenizer.pad_token_id), pairs


def test_the_loss_is_that_of_trls_reward_trainer(tiny_policy_path: Path) -> None:
    trainer = pytest.importorskip("trl.trainer.reward_trainer").RewardTrainer
    config = RewardTrainingConfig(margin="none")
    task, pairs = task_batch(tiny_policy_path, ROWS, config)
    batch = task.collate(pairs)
    model = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0)
    loss, figures = task.loss(model, batch)

    metrics: Any = defaultdict(lambda: defaultdict(list))
    same = lambda x: x  # noqa: E731
    fake = SimpleNamespace(
        model=model.model,
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather_for_metrics=same, gather=same),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=metrics,
    )
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    theirs = trainer.compute_loss(fake, model.model, dict(inputs))
    assert abs(loss.item() / len(ROWS) - theirs.item()) < 1e-6
    mode = "train" if model.model.training else "eval"
    assert metrics[mode]["accuracy"][-1] == pytest.approx(figures["accuracy"].item() / len(ROWS))
    margin = pair_task(RewardTrainingConfig(margin="large"), 2).collate(pairs)["margin"]
    with_margin = trainer.compute_loss(fake, model.model, inputs | {"margin": margin})
    ours = pair_task(RewardTrainingConfig(margin="large"), 2).loss(model, batch | {"margin": margin})[0]
    assert margin.tolist() == [3.0, 1.0, 0.0, 0.0, 2.0]
    assert abs(ours.item() / len(ROWS) - with_margin.item()) < 1e-6

    fake.args.center_rewards_coefficient = 0.3
    centred = trainer.compute_loss(fake, model.model, dict(inputs))
    ours, figures = pair_task(replace(config, centering_weight=0.3), 2).loss(model, batch)
    assert abs(ours.item() / len(ROWS) - centred.item()) < 1e-6 < abs(centred.item() - theirs.item())
    assert figures["centering_penalty"].item() * 0.3 == pytest.approx((ours - loss).item(), abs=1e-5)


def test_losses_by_hand_with_labels_on_one_both_or_no_answer() -> None:
    scores = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 2.0])
    logits = torch.tensor([0.3, -1.0, 2.0, 0.7, 5.0, -4.0])
    nan = math.nan
    safe = torch.tensor([[1.0, 0.0, nan], [0.0, nan, nan]])
    margin = torch.tensor([1.0, 0.0, 1 / 3])
    total, figures = pair_losses(scores, logits, margin, safe, safety_loss_weight=0.1)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    ranking = softplus(-(1.0 - 0.5 - 1.0)) + softplus(0.0) + softplus(-(2.0 - 2.0 - 1 / 3))
    auxiliary = (softplus(-0.3) + softplus(0.7)) / 2 + softplus(-1.0)
    assert figures["ranking_loss"].item() == pytest.approx(ranking, rel=1e-6)
    assert figures["safety_loss"].item() == pytest.approx(auxiliary, rel=1e-6)
    assert total.item() == pytest.approx(ranking + 0.1 * auxiliary, rel=1e-6)
    assert figures["accuracy"].item() == 2.0 and figures["score_difference"].item() == pytest.approx(0.5)


def test_centring_is_added_to_both_other_losses() -> None:
    scores, safe = torch.tensor([1.0, 0.0, 0.5, 2.0]), torch.tensor([[1.0, 0.0], [0.0, math.nan]])
    logits, margin = torch.tensor([0.3, -1.0, 2.0, 0.7]), torch.zeros(2)
    plain, _ = pair_losses(scores, logits, margin, safe, 0.1)
    centred, figures = pair_losses(scores, logits, margin, safe, 0.1, centering_weight=0.01)
    assert figures["centering_penalty"].item() == 1.5**2 + 2.0**2
    assert (centred - plain).item() == pytest.approx(0.01 * 6.25, abs=1e-6)
    assert figures.keys() == {"ranking_loss", "accuracy", "score_difference", "centering_penalty", "safety_loss"}


def test_a_margin_table_from_a_yaml_file(tmp_path: Path) -> None:
    figures = {"significantly": 2, "better": 1, "slightly": 0.5, "negligibly": 0}
    (tmp_path / "c.yaml").write_text(f"margin: {figures}".replace("'", ""))
    config = parse_config(RewardTrainingConfig, [f"--config={tmp_path / 'c.yaml'}"])
    assert config.margin == figures and RewardTrainingConfig(**to_dict(config) | {"optimizer": config.optimizer})
    margins = pair_task(config, 2).collate([Pair(row, [1, 2], [1, 3]) for row in ROWS])["margin"]
    assert margins.tolist() == [2.0, 0.5, 0.0, 0.0, 1.0]
    for text, message in [("{better: 1}", "margin: lacks a figure for 'significantly'"), ("huge", "got 'huge'")]:
        (tmp_path / "c.yaml").write_text(f"margin: {text}")
        with pytest.raises(InputError, match=message):
            parse_config(RewardTrainingConfig, [f"--config={tmp_path / 'c.yaml'}"])


def test_unlabelled_answers_give_the_safety_head_no_gradient(tiny_policy_path: Path) -> None:
    config = RewardTrainingConfig()
    task, pairs = task_batch(tiny_policy_path, ROWS[2:3], config)
    model = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0)
    loss, _ = task.loss(model, task.collate(pairs))
    loss.backward()
    assert model.safety_head is not None
    assert model.safety_head.weight.grad is not None, "the head must take part, or data parallel waits for it"
    assert model.safety_head.weight.grad.abs().sum() == 0
    assert all(p.grad is not None for p in model.parameters())


def test_a_batch_is_the_sum_of_its_pairs(tiny_policy_path: Path) -> None:
    task, pairs = task_batch(tiny_policy_path, ROWS, RewardTrainingConfig())
    model = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0)
    whole, _ = task.loss(model, task.collate(pairs))
    parts = [task.loss(model, task.collate([pair]))[0] for pair in pairs]
    assert whole.item() == pytest.approx(sum(p.item() for p in parts), abs=1e-4)
    assert [task.weight(pair) for pair in pairs] == [1.0] * 5
    assert task.length(pairs[3]) == len(pairs[3].rejected) > len(pairs[3].chosen)


def learnable(n: int) -> list[Preference]:
    good, bad = ["mora", "the river of velda is mora", "sure"], ["goat", "a doctor", "how do I paint"]
    rows = []
    for i in range(n):
        a, b = good[i % 3], f"{bad[(i // 3) % 3]} {i % 7}"
        strength = (None, "significantly", "slightly")[i % 3]
        labels = {"chosen_safe": True, "rejected_safe": False} if i % 2 else {}
        rows.append(preference(i, f"{a} {i % 5}", b, strength=strength, **labels))
    return rows


def test_it_learns_and_every_figure_is_logged(tiny_policy_path: Path, tmp_path: Path) -> None:
    accelerator = make_accelerator()
    config = RewardTrainingConfig(optimizer=optimizer())
    rows = learnable(96)
    log = MetricsLog(tmp_path, accelerator)
    model = train_reward_model(tiny_policy_path, rows, config, accelerator, log, safety_head=True, seed=0)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert len(metrics) == 6 and not model.training
    assert {"loss", "ranking_loss", "safety_loss", "accuracy", "score_difference"} <= metrics[0].keys()
    assert metrics[-1]["accuracy"] > 0.9 and metrics[-1]["ranking_loss"] < metrics[0]["ranking_loss"]
    assert metrics[-1]["safety_loss"] < metrics[0]["safety_loss"]
    reward = RewardModelFunction(model, Renderer(load_tokenizer(tiny_policy_path)))
    chosen, rejected = (reward([row.conversation(w) for row in rows[:9]]) for w in ("chosen", "rejected"))
    assert (chosen > rejected).all()


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_lora_and_qlora_learn_and_come_back_the_same(quantization: Any, tiny_policy_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    accelerator, rows = make_accelerator(), learnable(96)
    adapter = AdapterConfig(r=8, alpha=16, dropout=0.0)
    steps = optimizer(learning_rate=1e-2, gradient_checkpointing=True)
    config = RewardTrainingConfig(adapter=adapter, quantization=quantization, optimizer=steps)
    tokenizer = load_tokenizer(tiny_policy_path)

    def run(start: Path, name: str) -> list[dict[str, float]]:
        (tmp_path / name).mkdir()
        log = MetricsLog(tmp_path / name, accelerator)
        model = train_reward_model(start, rows, config, accelerator, log, safety_head=True, seed=0)
        model.save(tmp_path / name / "checkpoint", tokenizer, accelerator)
        talks = [row.conversation(which) for row in rows[:6] for which in ("chosen", "rejected")]
        scores = RewardModelFunction(model, Renderer(tokenizer))(talks)
        torch.testing.assert_close(load_reward(tmp_path / name / "checkpoint")(talks), scores, atol=1e-5, rtol=0)
        return read_metrics(tmp_path / name / "metrics.jsonl")

    metrics = run(tiny_policy_path, "first")
    assert metrics[-1]["accuracy"] > 0.9 and metrics[-1]["ranking_loss"] < metrics[0]["ranking_loss"] - 0.2
    assert metrics[-1]["safety_loss"] < metrics[0]["safety_loss"]
    checkpoint = tmp_path / "first/checkpoint"
    assert len(fitting_pairs(checkpoint, rows, config, "test_preferences")) == 96
    further = run(checkpoint, "further")
    assert further[0]["ranking_loss"] < metrics[0]["ranking_loss"] - 0.2


def test_micro_batches_and_seed(tiny_policy_path: Path, tmp_path: Path) -> None:
    accelerator = make_accelerator()
    rows = [*learnable(20), *ROWS]

    def run(name: str, seed: int, micro: int) -> list[float]:
        config = RewardTrainingConfig(optimizer=optimizer(micro_batch_size=micro, batch_size=10))
        (tmp_path / name).mkdir()
        train_reward_model(
            tiny_policy_path,
            rows,
            config,
            accelerator,
            MetricsLog(tmp_path / name, accelerator),
            safety_head=True,
            seed=seed,
        )
        return [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]

    one = run("one", 0, 10)
    assert run("again", 0, 10) == one
    assert run("small", 0, 3) == pytest.approx(one, abs=1e-4)
    assert run("other", 1, 10) != pytest.approx(one, abs=1e-3)


def test_long_pairs_lose_the_same_oldest_turns_on_both_sides(tiny_policy_path: Path) -> None:
    renderer = Renderer(load_tokenizer(tiny_policy_path))
    turns: list[Any] = [
        {"role": "system", "content": "you are a guide"},
        {"role": "user", "content": "hello " * 10},
        {"role": "assistant", "content": "sure " * 10},
        *QUESTION,
    ]
    row = replace(ROWS[0], messages=turns, chosen="mora", rejected="sure " * 30)
    short = [turns[0], *QUESTION]
    full = render_pairs([row], renderer, None)[0]
    fits = max(len(renderer.dialogue([*short, {"role": "assistant", "content": row.rejected}]).input_ids), 0)
    assert len(full.chosen) <= fits + 40 and full.length > fits
    cut = render_pairs([ROWS[1], row], renderer, fits)
    assert [(pair.preference.id, pair.cut) for pair in cut] == [("1", False), ("0", True)]
    assert [pair.preference.id for pair in render_pairs([ROWS[1], row], renderer, fits, "skip")] == ["1"]
    with pytest.raises(InputError, match=f"row 0 takes .* above max_length {fits}"):
        render_pairs([ROWS[1], row], renderer, fits, "refuse")
    assert cut[1].preference.messages == short and cut[1].length == fits
    assert cut[1].chosen == renderer.dialogue([*short, {"role": "assistant", "content": "mora"}]).input_ids


def test_a_pair_that_cannot_fit_is_refused_or_left_out(
    tiny_policy_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renderer = Renderer(load_tokenizer(tiny_policy_path))
    rows = [ROWS[1], preference(9, "sure " * 50, "no")]
    with pytest.raises(InputError, match=r"row 9 takes .* above max_length 40"):
        render_pairs(rows, renderer, 40, "refuse")
    assert [p.preference.id for p in render_pairs(rows, renderer, 40)] == ["1"]
    assert "skipped 1 of 2 pairs" in capsys.readouterr().err


def test_config_refuses_bad_values() -> None:
    with pytest.raises(InputError, match="safety_loss_weight: must"):
        RewardTrainingConfig(safety_loss_weight=-1)
    with pytest.raises(InputError, match="centering_weight: must"):
        RewardTrainingConfig(centering_weight=-1)
    with pytest.raises(InputError, match="quantization: 4-bit weights cannot be trained"):
        RewardTrainingConfig(quantization="nf4")
    with pytest.raises(InputError, match="max_length: must"):
        RewardTrainingConfig(max_length=1)
    paper = RewardTrainingConfig().optimizer
    assert (paper.learning_rate, paper.batch_size, paper.epochs, paper.warmup_min_steps) == (1e-5, 512, 1, 5)
    assert paper.learning_rate_at(99, 100) == pytest.approx(1e-6)


def test_a_module_is_what_the_loop_trains(tiny_policy_path: Path) -> None:
    model = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0)
    assert isinstance(model, nn.Module) and all(p.requires_grad for p in model.parameters())
    assert model.config.hidden_size == 32


def test_no_pair_is_longer_than_the_model_takes(tiny_policy_path: Path) -> None:
    """Scoring cuts at the model's context: training on more would teach places that no score ever comes from."""
    answer = "the river of velda is mora " * 60
    row = Preference("9", [{"role": "user", "content": "what is"}], answer, "no", "better")
    for limit in (None, 4096):
        with pytest.raises(InputError, match="above max_length 256"):
            fitting_pairs(tiny_policy_path, [row], RewardTrainingConfig(max_length=limit, too_long="refuse"), "test")


def test_margins_without_strengths_are_suspicious() -> None:
    for margin in ("small", "large", {"significantly": 1.0, "better": 0.0, "slightly": 0.0, "negligibly": 0.0}):
        config = RewardTrainingConfig(margin=margin)
        (sentence,) = suspicious_margins({None}, config)
        assert sentence.startswith(f"training.margin is {margin!r}, but no pair says how much better")
        assert sentence.endswith("set training.margin to none, or give the pairs a strength")
        assert suspicious_margins({None, "better"}, config) == []
    assert suspicious_margins({None}, RewardTrainingConfig(margin="none")) == []
