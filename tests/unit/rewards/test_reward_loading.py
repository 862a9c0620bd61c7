"""A reward model reads with its own tokenizer and template, whatever the policy's are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlhf.conversation import Conversation
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.loading import load_reward

TALK: Conversation = [{"role": "user", "content": "what is the river"}, {"role": "assistant", "content": "mora"}]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% if m['role'] == 'assistant' %}<end> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture
def other_family(tmp_path: Path) -> Path:
    """A classifier whose tokenizer knows whole words, with other ids and another template than the policy's."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "<end>"], show_progress=False)
    words.train_from_iterator(["user assistant what is the river mora"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def test_it_is_scored_on_its_own_ids(other_family: Path, tiny_policy_path: Path) -> None:
    vocabulary = load_tokenizer(other_family).get_vocab()
    assert vocabulary != load_tokenizer(tiny_policy_path).get_vocab()
    text = "user what is the river assistant mora <end>"
    ids = torch.tensor([[vocabulary[word] for word in text.split()]])
    with torch.no_grad():
        want = RewardModel.load(other_family)(ids, torch.ones_like(ids)).score
    torch.testing.assert_close(load_reward(other_family)([TALK]), want, atol=1e-6, rtol=0)
