"""Padding, batch, dropout and a save change no score; plain transformers agrees; a missing head is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from rlhf.errors import InputError
from rlhf.models.batching import pad_rows
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel

ROWS = [[1, 5, 9, 33], [1, 60], [1, 7, 8, 9, 10, 11, 12, 4], [1, 2, 2, 6, 30, 2]]


@pytest.fixture
def reward(tiny_policy_path: Path) -> RewardModel:
    return RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=3).eval()


def test_scores_do_not_depend_on_padding_or_batch(reward: RewardModel) -> None:
    with torch.no_grad():
        batch = reward(*pad_rows(ROWS, pad_id=2))
        other_pad = reward(*pad_rows([*ROWS, [1] * 40], pad_id=50))
        for i, row in enumerate(ROWS):
            alone = reward(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))
            for together in (batch, other_pad):
                torch.testing.assert_close(together.score[i], alone.score[0], atol=1e-4, rtol=0)
                torch.testing.assert_close(together.safety_logit[i], alone.safety_logit[0], atol=1e-4, rtol=0)


def test_scores_are_float32_under_autocast_too(reward: RewardModel) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ids, mask = pad_rows(ROWS, pad_id=2)
        for scores in (*reward(ids, mask), reward.token_scores(ids, mask)[mask != 0]):
            assert not torch.equal(scores, scores.bfloat16().float()), "rounded to eight bits"


def test_an_end_token_that_is_also_the_pad_token_is_scored(reward: RewardModel) -> None:
    with torch.no_grad():
        ended, open_end = (reward(*pad_rows([row, [1] * 9], pad_id=2)).score[0] for row in ([1, 5, 2], [1, 5]))
    assert abs(float(ended - open_end)) > 1e-3


def test_token_scores_end_in_the_score_and_are_zero_on_padding(reward: RewardModel) -> None:
    ids, mask = pad_rows(ROWS, pad_id=2)
    with torch.no_grad():
        values, scores = reward.token_scores(ids, mask), reward(ids, mask).score
    assert values.shape == ids.shape and values.dtype == torch.float32
    assert (values[mask == 0] == 0).all()
    for value, score, row in zip(values, scores, ROWS, strict=True):
        torch.testing.assert_close(value[len(row) - 1], score)


def test_head_is_seeded_small_and_float32(tiny_policy_path: Path) -> None:
    one, same, other = (
        RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=s, dtype="bfloat16") for s in (1, 1, 2)
    )
    assert torch.equal(one.model.score.weight, same.model.score.weight)
    assert not torch.equal(one.model.score.weight, other.model.score.weight)
    assert (
        one.model.score.weight.dtype == torch.float32
        and one.model.base_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    )
    std = torch.cat(
        [RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=s).model.score.weight for s in range(20)]
    ).std()
    assert std.item() == pytest.approx(33**-0.5, rel=0.1)
    assert one(*pad_rows(ROWS, 2)).score.dtype == torch.float32


def test_saved_and_loaded_and_by_plain_transformers_the_same_scores(
    reward: RewardModel, tiny_policy_path: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_policy_path)
    reward.save(tmp_path / "c", tokenizer)
    ids, mask = pad_rows(ROWS[:3], tokenizer.pad_token_id)
    with torch.no_grad():
        want, got = reward(ids, mask), RewardModel.load(tmp_path / "c")(ids, mask)
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
        logits = plain(input_ids=ids, attention_mask=mask).logits
    assert logits.shape == (3, 1)
    assert torch.equal(got.score, want.score) and torch.equal(got.safety_logit, want.safety_logit)
    torch.testing.assert_close(logits[:, 0], want.score, atol=1e-5, rtol=0)


def test_a_policy_is_refused_as_reward_model(tiny_policy_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no score\.weight"):
        RewardModel.load(tiny_policy_path)


def test_a_sharded_checkpoint_is_looked_through(reward: RewardModel, tiny_policy_path: Path, tmp_path: Path) -> None:
    reward.save(tmp_path / "c", load_tokenizer(tiny_policy_path))
    tensors = load_file(tmp_path / "c/model.safetensors")
    (tmp_path / "c/model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": [], "model-00002-of-00002.safetensors": []}
    for i, name in enumerate(sorted(tensors)):
        parts[list(parts)[i % 2]].append(name)
    for file, names in parts.items():
        save_file({n: tensors[n] for n in names}, tmp_path / "c" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, names in parts.items() for n in names}}
    (tmp_path / "c/model.safetensors.index.json").write_text(json.dumps(index))
    with torch.no_grad():
        assert torch.equal(RewardModel.load(tmp_path / "c")(*pad_rows(ROWS, 2)).score, reward(*pad_rows(ROWS, 2)).score)
    holder = index["weight_map"]["score.weight"]
    (tmp_path / "c" / holder).unlink()
    with pytest.raises(InputError, match=f"lacks {holder}"):
        RewardModel.load(tmp_path / "c")
    rest = {n: tensors[n] for n in parts[holder] if n != "score.weight"}
    save_file(rest, tmp_path / "c" / holder, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no score\.weight"):
        RewardModel.load(tmp_path / "c")


def test_other_broken_checkpoints_get_one_sentence(reward: RewardModel, tiny_policy_path: Path, tmp_path: Path) -> None:
    reward.save(tmp_path / "c", load_tokenizer(tiny_policy_path))
    shutil.copytree(tmp_path / "c", tmp_path / "cut")
    content = (tmp_path / "c/model.safetensors").read_bytes()
    (tmp_path / "cut/model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        RewardModel.load(tmp_path / "cut")
    tensors = load_file(tmp_path / "c/model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "c/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the weights model\.norm\.weight"):
        RewardModel.load(tmp_path / "c")


def test_a_classifier_of_another_family_works(tiny_policy_path: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for labels, folder in ((1, tmp_path / "one"), (3, tmp_path / "three")):
        BertForSequenceClassification(BertConfig(vocab_size=300, num_labels=labels, **sizes)).save_pretrained(folder)
        load_tokenizer(tiny_policy_path).save_pretrained(folder)
    reward = RewardModel.load(tmp_path / "one")
    ids, mask = pad_rows(ROWS, 2)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    with torch.no_grad():
        torch.testing.assert_close(reward(ids, mask).score, plain(input_ids=ids, attention_mask=mask).logits[:, 0])
    with pytest.raises(InputError, match="no `score` layer"):
        reward.token_scores(ids, mask)
    with pytest.raises(InputError, match="3 labels"):
        RewardModel.load(tmp_path / "three")


def test_dropout_is_off_in_training(tiny_policy_path: Path, tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        tmp_path
    )
    load_tokenizer(tiny_policy_path).save_pretrained(tmp_path)
    reward = RewardModel.from_policy(tmp_path, safety_head=False, seed=0).train()
    ids, mask = pad_rows(ROWS, 2)
    assert torch.equal(reward(ids, mask).score, reward(ids, mask).score)


def test_gradient_checkpointing_gives_the_same_gradients(reward: RewardModel) -> None:
    ids, mask = pad_rows(ROWS, 2)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            reward.gradient_checkpointing_enable({"use_reentrant": False})
        reward.train().zero_grad()
        reward(ids, mask).score.sum().backward()
        grads.append(reward.model.base_model.layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(*grads)
