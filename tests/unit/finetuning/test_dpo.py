"""DPO: the loss by hand, and whole models' against trl's trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhf.conversation import Renderer
from rlhf.data.rows import Preference
from rlhf.finetuning.dpo import dpo_pairs, dpo_task, with_reference
from rlhf.finetuning.supervised import AnswerLogprobs
from rlhf.models.policy import load_policy
from rlhf.objectives.dpo import dpo_loss, implicit_reward
from rlhf.training.accelerator import make_accelerator

PREFERENCES = [
    Preference(str(number), [{"role": "user", "content": f"what is {word} ?"}], chosen, rejected)
    for number, (word, chosen, rejected) in enumerate(
        [("velda", "the river", "a goat is not safe"), ("mora", "hello I cannot", "sure"), ("it", "a doctor", "no")]
    )
]


def test_loss_by_hand() -> None:
    policy, reference = torch.tensor([-3.0, -10.0]), torch.tensor([-4.0, -10.0])
    rewards = implicit_reward(policy, reference, 0.1)
    assert rewards.tolist() == pytest.approx([0.1, 0.0])
    loss = dpo_loss(rewards, torch.tensor([-0.1, 0.0]))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-0.2)), math.log(2)], abs=1e-6)
    with pytest.raises(ValueError, match="shape"):
        dpo_loss(rewards, torch.zeros(2, 1))


@pytest.fixture
def other_policy(tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The tiny policy with other weights."""
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std())
    model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def ours(
    policy: Path, reference: Path, tokenizer: PreTrainedTokenizerFast, packing: bool
) -> tuple[float, dict[str, float]]:
    accelerator = make_accelerator()
    renderer = Renderer(tokenizer)
    pairs = dpo_pairs(PREFERENCES, renderer, 200, "refuse")
    pairs = with_reference(pairs, load_policy(reference), renderer.pad_token_id, accelerator)
    task = dpo_task(0.1, renderer.pad_token_id)
    loss, figures = task.loss(AnswerLogprobs(load_policy(policy), packing=packing), task.collate(pairs))
    return float(loss) / len(pairs), {name: float(value) / len(pairs) for name, value in figures.items()}


def test_the_start_is_log_2_and_packing_changes_nothing(
    tiny_policy_path: Path, other_policy: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    loss, figures = ours(tiny_policy_path, tiny_policy_path, tiny_tokenizer, packing=False)
    assert loss == pytest.approx(math.log(2), abs=1e-5) and figures["chosen_reward"] == pytest.approx(0, abs=1e-5)
    packed, padded = (ours(other_policy, tiny_policy_path, tiny_tokenizer, packing=p)[0] for p in (True, False))
    assert packed == pytest.approx(padded, abs=1e-5) and abs(packed - math.log(2)) > 1e-3


def test_whole_models_agree_with_trl(
    tiny_policy_path: Path, other_policy: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows: list[dict[str, Any]] = [
        {
            "prompt": row.messages,
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
        for row in PREFERENCES
    ]
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.1, use_cpu=True, bf16=False, per_device_eval_batch_size=3,
        gradient_checkpointing=False, report_to="none", max_length=None,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(other_policy),
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_policy_path),
        args=arguments,
        processing_class=tiny_tokenizer,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
    )
    theirs = trainer.evaluate()
    loss, figures = ours(other_policy, tiny_policy_path, tiny_tokenizer, packing=True)
    assert loss == pytest.approx(theirs["eval_loss"], abs=1e-4)
    assert figures["chosen_reward"] == pytest.approx(theirs["eval_rewards/chosen"], abs=1e-4)
    assert figures["rejected_reward"] == pytest.approx(theirs["eval_rewards/rejected"], abs=1e-4)
