"""Reward models of others: two labels, pairs of texts without a template, and a model that says which is better."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from tokenizers import processors
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.rewards.loading import load_reward
from rlhf.rewards.specs import reward_files

TALKS: list[Conversation] = [
    [{"role": "user", "content": "what is the river of velda?"}, {"role": "assistant", "content": "it is mora."}],
    [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "sure"},
        {"role": "user", "content": "paint my goat"},
        {"role": "assistant", "content": "I cannot help with that"},
    ],
]
PAIRS = [
    ("what is the river of velda?", "it is mora."),
    ("User: hello\n\nAssistant: sure\n\nUser: paint my goat", "I cannot help with that"),
]
SIZE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE |= {"initializer_range": 0.3}

Save = Callable[..., Path]


@pytest.fixture
def save(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Save:
    """Write a random model with the tiny tokenizer, with or without its template."""

    def write(model: Any, template: bool) -> Path:
        model.save_pretrained(tmp_path / "reward")
        words = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
        backend = type(tiny_tokenizer.backend_tokenizer).from_str(json.dumps(words))
        if not template:  # as an encoder's: the two texts stand in marks of their own
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
        )
        tokenizer.chat_template = tiny_tokenizer.chat_template if template else None
        tokenizer.save_pretrained(tmp_path / "reward")
        return tmp_path / "reward"

    torch.manual_seed(0)
    return write


@pytest.mark.parametrize(
    ("labels", "good"),
    [(None, 1), (["LABEL_0", "LABEL_1"], 1), (["NEGATIVE", "POSITIVE"], 1), (["chosen", "rejected"], 0)],
)
def test_two_labels_are_the_log_odds_of_the_good_one(
    labels: list[str] | None, good: int, save: Save, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    named = {} if labels is None else {"id2label": dict(enumerate(labels))}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=300, pad_token_id=2, **SIZE, **named)).eval()
    folder = save(model, template=True)
    assert reward_files(reward=folder) == {"reward": folder}
    rows = [row.input_ids for row in Renderer(tiny_tokenizer).dialogues(TALKS, train="last")]
    with torch.no_grad():
        probabilities = torch.cat([model(torch.tensor([row])).logits for row in rows]).softmax(-1)[:, good]
    scores = load_reward(folder)(TALKS)
    assert scores.std() > 1e-3
    torch.testing.assert_close(scores.sigmoid(), probabilities, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("labels", [1, 2])
def test_an_encoder_without_a_template_reads_a_pair_of_texts(labels: int, save: Save) -> None:
    config = DebertaV2Config(vocab_size=300, pad_token_id=2, max_position_embeddings=128, num_labels=labels, **SIZE)
    model = DebertaV2ForSequenceClassification(config).eval()
    folder = save(model, template=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert reward_files(reward=folder) == {"reward": folder}
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(*pair, return_tensors="pt")).logits for pair in PAIRS])
    want = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
    reward = load_reward(folder, device="cpu")
    torch.testing.assert_close(reward(TALKS), want, atol=1e-5, rtol=1e-5)
    # ZeRO-3 divides no such model: it goes to the device whole
    zero_3 = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    elsewhere: Any = SimpleNamespace(
        device=torch.device("meta"), distributed_type=DistributedType.DEEPSPEED, state=zero_3
    )
    reward = load_reward(folder, accelerator=elsewhere)
    assert reward._encoder.model.device.type == "meta"  # type: ignore[attr-defined]


def test_a_text_to_text_model_is_asked_which_response_is_better(save: Save) -> None:
    config = T5Config(
        vocab_size=300, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, pad_token_id=2, decoder_start_token_id=2
    )
    model = T5ForConditionalGeneration(config).eval()
    folder = save(model, template=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert reward_files(reward=folder) == {"reward": folder}
    want = []
    for post, answer in PAIRS:
        asked = f"POST: {post}\n\n RESPONSE A: {answer}\n\n RESPONSE B: .\n\n Which response is better? RESPONSE"
        ids = tokenizer(asked, return_tensors="pt", truncation=True).input_ids
        with torch.no_grad():
            first = model(input_ids=ids, decoder_input_ids=torch.tensor([[2]])).logits[0, -1].softmax(-1)
        want.append(first[tokenizer("A", add_special_tokens=False).input_ids[-1]])
    torch.testing.assert_close(load_reward(folder)(TALKS).sigmoid(), torch.stack(want), atol=1e-5, rtol=1e-4)
    long = [[{"role": "user", "content": "hello " * 300}, {"role": "assistant", "content": text}] for text in "ab"]
    assert load_reward(folder)(long)[0] != load_reward(folder)(long)[1], "the answer stays"


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["a", "b", "c"], r"reward model: .* has 3 labels, a reward model has 1, or 2 of which .*own_reward\.md"),
        (["cat", "dog"], r"reward model: .* has the labels cat and dog, which do not say .* name them bad and good in"),
    ],
)
def test_labels_that_say_nothing_of_answers_are_refused_before_loading(
    labels: list[str], sentence: str, save: Save
) -> None:
    named = dict(enumerate(labels))
    folder = save(
        LlamaForSequenceClassification(LlamaConfig(vocab_size=300, pad_token_id=2, id2label=named, **SIZE)), True
    )
    with pytest.raises(InputError, match=sentence):
        reward_files(reward=folder)
