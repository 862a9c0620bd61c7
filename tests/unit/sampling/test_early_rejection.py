from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.sampling.early_rejection import EarlyRejection, EarlyRejectionConfig
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams

PROMPTS: list[Conversation] = [[{"role": "user", "content": "goat " * n}] for n in (1, 2, 9)]


def vowels(keys: Sequence[int], texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([float(sum(letter in "aeiou" for letter in text)) for text in texts])


def test_the_worst_share_of_each_prompt_is_chosen_and_of_equal_ones_the_later() -> None:
    rejection = EarlyRejection(EarlyRejectionConfig(at=(8,), drop=0.5), vowels)
    keys = [7, 3, 7, 3, 7, 3, 7, 9]
    texts = ["aaa", "a", "a", "aa", "b", "", "a", "b"]
    # prompt 7: 3, 1, 0, 1; prompt 3: 1, 2, 0, of which 1.5 is rounded down; prompt 9's only row stays
    assert rejection.choose(keys, texts) == [4, 5, 6]


def test_a_part_without_text_is_the_worst_and_is_not_scored() -> None:
    asked: list[str] = []

    def score(keys: Sequence[int], texts: Sequence[str]) -> torch.Tensor:
        asked.extend(texts)
        return vowels(keys, texts) - 9

    rejection = EarlyRejection(EarlyRejectionConfig(at=(8,), drop=0.5), score)
    assert rejection.choose([0, 0, 0, 0], ["a", "", "b", " "]) == [1, 3]
    assert asked == ["a", "b"]
    assert rejection.choose([0, 0], ["", ""]) == [1]


@pytest.mark.parametrize("rows", [64, 8])
def test_dropped_samples_are_beginnings_and_the_others_are_as_without(
    rows: int, tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, renderer = LlamaForCausalLM.from_pretrained(tiny_policy_path), Renderer(tiny_tokenizer)
    params = SamplingParams(max_new_tokens=20, seed=4)
    whole = InProcessSampler(model, renderer, rows).sample(PROMPTS, 8, params)
    asked: list[tuple[int, int]] = []

    def score(keys: Sequence[int], texts: Sequence[str]) -> torch.Tensor:
        asked.extend((key, keys.count(key)) for key in dict.fromkeys(keys))
        return vowels(keys, texts)

    rejection = EarlyRejection(EarlyRejectionConfig(at=(5, 10), drop=0.5), score)
    some = InProcessSampler(model, renderer, rows, rejection).sample(PROMPTS, 8, params, keys=[0, 1, 2])
    assert len(asked) == 6 and {key for key, _ in asked} == {0, 1, 2}
    for before, after in zip(whole, some, strict=True):
        alive = [i for i, sample in enumerate(before) if len(sample.token_ids) > 5]
        parts = [renderer.answer_text(before[i].token_ids[:5]) for i in alive]
        dropped = {alive[row] for row in rejection.choose([0] * len(alive), parts)}
        for i, (full, sample) in enumerate(zip(before, after, strict=True)):
            if i in dropped:
                assert sample.token_ids == full.token_ids[:5] and not sample.finished
                assert sample.text == renderer.answer_text(full.token_ids[:5])
            else:
                assert sample.token_ids in (full.token_ids, full.token_ids[:10])
        best = max(range(8), key=lambda i: vowels([], [before[i].text]).item())
        assert len(after[best].token_ids) >= 5
    assert sorted(len(sample.token_ids) for sample in some[0])[:6] == [5, 5, 5, 5, 10, 10]


@pytest.mark.parametrize(
    "scores", [lambda n: torch.full((n,), torch.nan), lambda n: torch.zeros(n, 1), lambda n: torch.zeros(n - 1)]
)
def test_a_score_that_is_no_number_a_row_is_refused(scores: object) -> None:
    rejection = EarlyRejection(EarlyRejectionConfig(), lambda keys, texts: scores(len(texts)))  # type: ignore[operator]
    with pytest.raises(InputError, match="one finite number for each part"):
        rejection.choose([0, 0, 1], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"at": ()}, "at: must name"), ({"at": (0,)}, "at: must name"), ({"drop": 1.0}, "drop: must lie")],
)
def test_bad_options_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EarlyRejectionConfig(**bad)  # type: ignore[arg-type]
