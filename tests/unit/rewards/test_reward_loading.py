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
from rlhf.rewards.ensembles import RewardEnsemble
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.loading import load_reward
from rlhf.rewards.suspicion import counts_of

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


def test_a_reward_of_one_s_own_gets_answers_without_their_thoughts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As reward models do; before, one that measures length measured the thoughts of data that has them."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_length.py").write_text(
        "import torch\n\n\ndef letters(talks):\n"
        "    return torch.tensor([sum(len(m['content']) for m in t) for t in talks])\n"
    )
    answers = ["<think>\na b c d e f g h i j k l\n</think>\n\nmora", "mora"]
    talks: list[Conversation] = [[*TALK, TALK[0], {"role": "assistant", "content": text}] for text in answers]
    talks.append([TALK[0], {"role": "assistant", "content": answers[0]}, TALK[0], TALK[1]])
    for reward in ("my_length:letters", "rlhf.rewards.examples:Brevity"):
        scores = load_reward(reward)(talks)
        assert len(set(scores.tolist())) == 1, reward
    assert talks[0][-1]["content"] == answers[0], "what it was given stays as it is"


def test_attributes_of_a_reward_of_one_s_own_are_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, a limit that was called too_long ended the stage with a traceback: an int has no length."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_limits.py").write_text(
        "import torch\n\n\nclass Short:\n    too_long, scored, cut = 200, 'all', None\n\n"
        "    def __call__(self, talks):\n        return -torch.ones(len(talks))\n\n\n"
        "class Asks(Short):\n    scored = 5\n\n    def too_long(self, text):\n        return len(text) > 200\n\n"
        "    def cut(self, text):\n        return text[:200]\n"
    )
    members = [load_reward(f"my_limits:{name}") for name in ("Short", "Asks")]
    for reward in (*members, RewardEnsemble(members)):
        gated = GatedReward(reward)
        assert gated([TALK], ["helpfulness"]).too_long.tolist() == [False]
        assert gated.suspicious() == [] and counts_of([reward]) == [(0, 0)]
