"""Log-probabilities do not depend on padding, batch or order, and equal a hand computation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf.models import logprobs
from rlhf.models.batching import batch_tokens_on, batches_by_length, pad_rows
from rlhf.models.logprobs import score_rows, sequence_logprobs
from rlhf.models.policy import load_policy


@pytest.fixture(scope="module")
def model(tiny_policy_path: Path) -> torch.nn.Module:
    return load_policy(tiny_policy_path)


def random_rows(n: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    ids = lambda k: torch.randint(0, 290, (k,), generator=generator).tolist()  # noqa: E731
    return [(ids(draw(1, 20)), ids(draw(0, 15))) for _ in range(n)]


def by_hand(model: torch.nn.Module, prompt: list[int], completion: list[int], temperature: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double() / temperature
    picked = [logits[len(prompt) - 1 + i].log_softmax(-1)[token] for i, token in enumerate(completion)]
    return torch.stack(picked).float() if picked else torch.zeros(0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_score_rows_equal_one_row_at_a_time_by_hand(model: torch.nn.Module, temperature: float) -> None:
    rows = random_rows(17)
    scores = score_rows(model, rows, pad_id=2, batch_tokens=100, temperature=temperature)
    for got, (prompt, completion) in zip(scores, rows, strict=True):
        assert got.dtype == torch.float32 and got.shape == (len(completion),)
        torch.testing.assert_close(got, by_hand(model, prompt, completion, temperature), atol=1e-4, rtol=0)


def test_pad_id_batch_size_and_order_change_nothing(model: torch.nn.Module) -> None:
    rows = random_rows(12, seed=1)
    one = score_rows(model, rows, pad_id=2, batch_tokens=10_000)
    other = score_rows(model, rows[::-1], pad_id=7, batch_tokens=30)[::-1]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_pad_id_inside_a_row_is_an_ordinary_token(model: torch.nn.Module) -> None:
    row = ([5, 2, 9], [2, 2, 4])
    got = score_rows(model, [row, ([5] * 9, [6] * 9)], pad_id=2)[0]
    torch.testing.assert_close(got, by_hand(model, *row), atol=1e-4, rtol=0)


def test_sequence_logprobs_agree_and_are_zero_on_padding(model: torch.nn.Module) -> None:
    rows = random_rows(5, seed=2)
    ids, mask = pad_rows([[*p, *c] for p, c in rows], pad_id=0)
    got = sequence_logprobs(model, ids, mask)
    assert got.requires_grad and got.shape == (5, ids.shape[1] - 1)
    for line, (prompt, completion), expected in zip(got, rows, score_rows(model, rows, pad_id=0), strict=True):
        start = len(prompt) - 1
        torch.testing.assert_close(line[start : start + len(completion)].detach(), expected, atol=1e-4, rtol=0)
        assert (line[start + len(completion) :] == 0).all()


def test_score_rows_restores_train_mode_and_refuses_an_empty_prompt(model: torch.nn.Module) -> None:
    model.train()
    score_rows(model, [([1], [2])], pad_id=2)
    assert model.training
    model.eval()
    with pytest.raises(ValueError, match="prompt is empty"):
        score_rows(model, [([], [2])], pad_id=2)


def test_batches_keep_the_token_budget_and_cover_every_row_once() -> None:
    lengths = [3, 50, 7, 7, 1, 20, 3]
    batches = batches_by_length(lengths, 40)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches[0] == [1]
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 40 for b in batches)


def test_pad_rows_mask_by_position() -> None:
    ids, mask = pad_rows([[9, 0], [1, 2, 3]], pad_id=0)
    assert ids.tolist() == [[9, 0, 0], [1, 2, 3]] and mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_where_nobody_says_batches_go_by_the_device(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [batch_tokens_on(device) for device in ("cpu", "cuda")] == [2048, 16384]
    assert [batch_tokens_on(device, logits=True) for device in ("cpu", "cuda:1")] == [2048, 8192]
    asked = []
    monkeypatch.setattr(logprobs, "batches_by_length", lambda lengths, most: asked.append(most) or [[0]])
    score_rows(model, [([1], [2])], pad_id=2)
    assert asked == [2048]
