"""Reward models of others that know no chat template, as reward functions.

- a classifier of two texts, question and answer (DeBERTa, ELECTRA and their kin);
- a text-to-text model that says which of two responses is better (SteamSHP, Ethayarajh et al. 2022, arXiv 2110.08420):
  the answer is response A, beside one that says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from rlhf.conversation import Conversation, without_thoughts
from rlhf.models.batching import batches_by_length
from rlhf.models.checkpoint.labels import good_and_bad
from rlhf.models.text_judges import Encoder

CHOICE = "POST: {post}\n\n RESPONSE A: {answer}\n\n RESPONSE B: .\n\n Which response is better? RESPONSE"


class PairReward:
    """A sequence classifier that reads a question and an answer as a pair of texts.

    A pair that is too long loses the end of the longer text.

    Args:
        folder: one label, whose logit is the score, or two: the score is the log-odds of the good one.
        device, batch_tokens: see `rlhf.rewards.loading.load_reward`.
    """

    def __init__(self, folder: str | os.PathLike[str], device: object = None, batch_tokens: int | None = None) -> None:
        self.__name__ = os.fspath(folder)
        self._labels = good_and_bad(folder)
        self._encoder = Encoder("reward", self.__name__, AutoModelForSequenceClassification, device, batch_tokens)

    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        """(n,) float32 raw scores on the CPU."""

        def read(outputs: Any, mask: Tensor) -> Tensor:
            logits: Tensor = outputs.logits.float()
            return logits[:, 0] if self._labels is None else logits[:, self._labels[0]] - logits[:, self._labels[1]]

        plain = [without_thoughts(talk) for talk in conversations]
        return self._encoder.run([question(talk) for talk in plain], read, [talk[-1]["content"] for talk in plain])


class ChoiceReward:
    """A text-to-text model that is asked which of two responses is better, by SteamSHP's prompt.

    The score is the log-odds of "A" as its first word, so that its sigmoid is that probability. A question that is too
    long loses its beginning, as far as half of the context; then the answer loses its end.

    Args:
        folder: of a T5 or another text-to-text model.
        device, batch_tokens: see `rlhf.rewards.loading.load_reward`.
    """

    def __init__(self, folder: str | os.PathLike[str], device: object = None, batch_tokens: int | None = None) -> None:
        self.__name__ = os.fspath(folder)
        self._encoder = Encoder("reward", self.__name__, AutoModelForSeq2SeqLM, device, batch_tokens)
        self._chosen = self._encoder.tokenizer("A", add_special_tokens=False)["input_ids"][-1]

    @torch.inference_mode()
    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        """(n,) float32 raw scores on the CPU."""
        rows = [self._ids(without_thoughts(talk)) for talk in conversations]
        scores, model = torch.zeros(len(rows)), self._encoder.model
        for some in batches_by_length([len(row) for row in rows], self._encoder.batch_tokens):
            batch = self._encoder.tokenizer.pad({"input_ids": [rows[i] for i in some]}, return_tensors="pt")
            start = torch.full((len(some), 1), model.config.decoder_start_token_id, device=model.device)
            logits = model(**batch.to(model.device), decoder_input_ids=start).logits[:, -1].float()
            others = logits.clone()
            others[:, self._chosen] = -torch.inf
            scores[some] = (logits[:, self._chosen] - others.logsumexp(-1)).cpu()
        return scores

    def _ids(self, talk: Conversation) -> list[int]:
        tokenizer, most = self._encoder.tokenizer, self._encoder.max_tokens
        post, answer = question(talk), talk[-1]["content"]
        ids: list[int] = tokenizer(CHOICE.format(post=post, answer=answer), split_special_tokens=True)["input_ids"]
        if len(ids) <= most:
            return ids
        self._encoder.say_cut()
        sizes = [len(self._text_ids(text)) for text in (post, answer)]
        frame = len(ids) - sum(sizes)
        kept = max(most - frame - sizes[1], min(sizes[0], (most - frame) // 2), 0)
        parts = {"post": self._cut(post, -kept), "answer": self._cut(answer, max(most - frame - kept, 0))}
        asked = tokenizer(CHOICE.format(**parts), truncation=True, max_length=most, split_special_tokens=True)
        return list(asked["input_ids"])

    def _text_ids(self, text: str) -> list[int]:
        return list(self._encoder.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _cut(self, text: str, tokens: int) -> str:
        """The first so many tokens of a text; of a negative number, the last."""
        ids = self._text_ids(text)
        kept = ids[:tokens] if tokens >= 0 else ids[tokens:]
        return str(self._encoder.tokenizer.decode(kept, skip_special_tokens=True)) if tokens else ""


def question(talk: Conversation) -> str:
    """What stands before the last answer as one text: the question alone, or all turns with who says them."""
    before = talk[:-1]
    if len(before) == 1:
        return before[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in before)
