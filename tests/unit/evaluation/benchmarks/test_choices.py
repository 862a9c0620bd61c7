"""Choices behind a context that is computed once have the log-probabilities that the harness finds one by one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.sampling.source import PolicySource

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from rlhf.evaluation.benchmarks.choices import _batches, harness_model
from rlhf.evaluation.benchmarks.leaderboard import load_as_saved


def requests(vocabulary: int, context: int) -> list[Any]:
    """Questions of unlike length with one to five choices, some of one token, one behind two choices of another."""
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    made = []
    for question, length in enumerate((3, 40, 1, 17, context - 2, context + 30)):
        asked = ids(length)
        for choice in range(draw.randint(1, 5)):
            made.append(((f"q{question}", f"c{choice}"), asked, ids(draw.choice((1, 1, 2, 7)))))
    draw.shuffle(made)
    return made


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_scores_are_the_harness_s(tiny_policy_path: Path, rows: int) -> None:
    model, tokenizer = load_as_saved(PolicySource(checkpoint=tiny_policy_path), torch.device("cpu"))
    asked = requests(model.config.vocab_size, model.config.max_position_embeddings)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)._loglikelihood_tokens(asked, disable_tqdm=True)
    shared = harness_model(model, tokenizer, rows)
    assert type(shared) is not HFLM
    ours = shared._loglikelihood_tokens(asked)
    assert [hit for _, hit in ours] == [hit for _, hit in theirs]
    torch.testing.assert_close(
        torch.tensor([score for score, _ in ours]), torch.tensor([score for score, _ in theirs]), rtol=1e-5, atol=1e-4
    )


def test_greedy_choices_are_known(tiny_policy_path: Path) -> None:
    model, tokenizer = load_as_saved(PolicySource(checkpoint=tiny_policy_path), torch.device("cpu"))
    context = [5, 6, 7]
    written = context[:]
    for _ in range(3):
        written.append(int(model(torch.tensor([written])).logits[0, -1].argmax()))
    choices = [written[3:], written[3:4], [(written[3] + 1) % model.config.vocab_size]]
    found = harness_model(model, tokenizer, 4)._loglikelihood_tokens([(None, context, choice) for choice in choices])
    assert [hit for _, hit in found] == [True, True, False]


def test_each_request_once_and_contexts_whole_where_they_fit() -> None:
    asked = requests(50, 20)
    for rows in (1, 2, 4, 7, 50):
        batches = list(_batches(asked, rows))
        assert sorted(number for batch in batches for number in batch) == list(range(len(asked)))
        assert all(0 < len(batch) <= rows for batch in batches)
        for batch in batches:
            contexts = {tuple(asked[number][1]) for number in batch}
            whole = [n for n, request in enumerate(asked) if tuple(request[1]) in contexts]
            assert len(whole) == len(batch) or any(
                sum(tuple(request[1]) == context for request in asked) > rows for context in contexts
            )
