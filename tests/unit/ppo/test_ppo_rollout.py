"""Rollouts: who answers what, the gate, the missing end, and reward functions that fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.ppo.loop import prompt_stream
from rlhf.ppo.rollout import Environment, referee_figures, roll_out, rollout_figures, standard_error
from rlhf.rewards.gate import GatedReward
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.training.accelerator import make_accelerator

PROMPTS = [
    Prompt("plain", [{"role": "user", "content": "what is"}]),
    Prompt("tagged", [{"role": "user", "content": "the river"}], domain="safety"),
    Prompt("other", [{"role": "user", "content": "hello"}]),
]
SAFETY = {"what is": 3.0, "the river": 3.0, "hello": -1.8}
HELPFULNESS = {"what is": 1.0, "the river": 2.0, "hello": 4.0}


class ScriptedSampler:
    """Answers with its key and sample number; the last prompt's second answer is cut off."""

    def __init__(self) -> None:
        self.keys: list[int] = []

    def sample(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        assert keys is not None
        self.keys += keys
        answers = []
        for key in keys:
            numbers = range(key * num_samples, (key + 1) * num_samples)
            answers.append([Sample(f"answer {n}", (10 + n, 1), -1.0, n % 6 != 5) for n in numbers])
        return answers


def _by_question(table: dict[str, float]) -> Callable[[Sequence[Conversation]], Tensor]:
    return lambda conversations: torch.tensor([table[c[0]["content"]] for c in conversations])


def _environment(tiny_tokenizer, sampler: ScriptedSampler | None = None, helpfulness=None) -> Environment:
    return Environment(
        sampler or ScriptedSampler(),
        Renderer(tiny_tokenizer),
        GatedReward(helpfulness or _by_question(HELPFULNESS), _by_question(SAFETY)),
        SamplingParams(),
        make_accelerator(seed=0),
    )


def test_the_gate_chooses_the_reward(tiny_tokenizer) -> None:
    """Tagged safety: always the safety score; otherwise only below sigmoid -1.7346 = 0.15."""
    environment = _environment(tiny_tokenizer)
    rollouts = roll_out(PROMPTS, environment, environment.sampling, num_samples=2)
    assert [r.reward for r in rollouts] == pytest.approx([1.0, 1.0, 3.0, 3.0, -1.8, -1.8])
    assert [r.used_safety for r in rollouts] == [False, False, True, True, True, True]
    assert [r.helpfulness for r in rollouts] == pytest.approx([1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert [r.answer_ids for r in rollouts] == [(10 + n, 1) for n in range(6)]
    assert rollouts[2].prompt_ids == tuple(environment.renderer.prompt_ids(PROMPTS[1].messages))
    assert [r.finished for r in rollouts] == [True] * 5 + [False]
    figures = rollout_figures(rollouts)
    assert figures["reward"] == pytest.approx((1 + 1 + 3 + 3 - 1.8 - 1.8) / 6)
    assert figures["gate_share"] == pytest.approx(4 / 6)
    assert figures["finished_share"] == pytest.approx(5 / 6)
    assert figures["no_room_share"] == pytest.approx(1 / 6), "of two tokens, and not ended: the context did"
    assert figures["length"] == 2.0


def test_no_iteration_repeats_anothers_draws(tiny_tokenizer) -> None:
    sampler = ScriptedSampler()
    environment = _environment(tiny_tokenizer, sampler)
    for iteration in range(3):
        roll_out(PROMPTS, environment, environment.sampling, 1, first_key=iteration * len(PROMPTS))
    assert sampler.keys == list(range(9))


def test_the_referee_judges_held_out_answers_alone(tiny_tokenizer) -> None:
    environment = _environment(tiny_tokenizer)
    rollouts = roll_out(PROMPTS, environment, environment.sampling, num_samples=1)
    assert referee_figures(PROMPTS, rollouts, environment) == {}
    environment = replace(environment, referee=_by_question({"what is": 1.0, "the river": 3.0, "hello": 9.0}))
    silent = [*rollouts[:2], replace(rollouts[2], text=" ")]
    figures = referee_figures(PROMPTS, silent, environment)
    # the silent one gets the lowest: 1, 3, 1, whose deviation is sqrt(4 / 3)
    assert figures == {"referee": pytest.approx(5 / 3), "referee_error": pytest.approx(2 / 3)}


def test_a_standard_error() -> None:
    assert standard_error([1.0, 3.0, 1.0, 3.0]) == pytest.approx(math.sqrt(4 / 3) / 2)
    assert standard_error([5.0]) == standard_error([]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_function_that_fails_is_named(tiny_tokenizer, bad: float) -> None:
    def broken(conversations: Sequence[Conversation]) -> Tensor:
        return torch.tensor([0.0] * (len(conversations) - 1) + [bad])

    environment = _environment(tiny_tokenizer, helpfulness=broken)
    with pytest.raises(InputError, match=r"broken.*score 2 is .* not finite"):
        roll_out(PROMPTS, environment, environment.sampling, 1)


def test_prompts_come_in_a_fresh_order_each_time_round() -> None:
    prompts = [Prompt(str(i), PROMPTS[0].messages) for i in range(10)]
    drawn = [p.id for p in islice(prompt_stream(prompts, seed=0), 20)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(p.id for p in prompts)
    assert drawn[:10] != drawn[10:]
    assert drawn == [p.id for p in islice(prompt_stream(prompts, seed=0), 20)]
