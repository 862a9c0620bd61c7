"""Choices behind a context that is computed once have the log-probabilities that the harness finds one by one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import InputError
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


def test_a_choice_that_cannot_be_scored_is_refused(tiny_policy_path: Path) -> None:
    """One without tokens would be certain, and win; one beyond the context ended in a traceback."""
    model, tokenizer = load_as_saved(PolicySource(checkpoint=tiny_policy_path), torch.device("cpu"))
    most = model.config.max_position_embeddings
    shared = harness_model(model, tokenizer, 4)
    assert len(shared._loglikelihood_tokens([(("Q", "a"), [5], [6] * most)])) == 1
    for choice in ([], [6] * (most + 1)):
        with pytest.raises(
            InputError, match=f"tasks: the choice 'a' is {len(choice)} tokens; this model takes 1 to {most}"
        ):
            shared._loglikelihood_tokens([(("Q", "b"), [5], [6]), (("Q", "a"), [5], choice)])


def test_a_context_that_is_cut_is_said(tiny_policy_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_as_saved(PolicySource(checkpoint=tiny_policy_path), torch.device("cpu"))
    most = model.config.max_position_embeddings
    shared = harness_model(model, tokenizer, 4)
    shared._loglikelihood_tokens([(("Q", "a"), [5] * most, [6]), (("Q", "b"), [5] * (most - 1), [6, 7])])
    assert "left out" not in capsys.readouterr().err
    shared._loglikelihood_tokens([(("Q", "a"), [5] * most, [6]), (("Q", "b"), [5] * most, [6, 7])])
    assert f"1 of 2 choices do not fit behind their context in the model's {most} tokens" in capsys.readouterr().err


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
