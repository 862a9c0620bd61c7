"""Judges: gold scorers by import path, reward functions over answers that may be empty, KL from log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.judging import with_gold, with_referee, with_rewards, with_scores
from rlhf.evaluation.policies.divergence import answer_kls, answer_logprobs, require_same_tokenizer
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.rewards.gate import GatedReward


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def answer(text: str, domain: str = "helpfulness") -> Answer:
    messages: Conversation = [{"role": "user", "content": "Hello?"}]
    return Answer("p", 0, messages, domain, "", text, len(text), True)  # type: ignore[arg-type]


def length(conversations: Sequence[Conversation]) -> torch.Tensor:
    assert all(c[-1]["content"].strip() for c in conversations), "a reward function must never see an empty answer"
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])


def minus_length(conversations: Sequence[Conversation]) -> torch.Tensor:
    return -length(conversations)


def test_rewards_go_through_the_gate_and_empty_answers_get_the_lowest(accelerator: Accelerator) -> None:
    rows = [answer("a"), answer(""), answer("abc"), answer("ab", "safety")]
    judged = with_rewards(rows, GatedReward(length, minus_length), accelerator)
    assert [a.helpfulness for a in judged] == [1.0, 1.0, 3.0, 2.0]
    assert [a.safety for a in judged] == [-1.0, -3.0, -3.0, -2.0]
    assert [a.reward for a in judged] == [1.0, -3.0, -3.0, -2.0]  # -3 and -2 lie below the gate's -1.7346


def test_an_empty_answer_is_not_cut_where_all_others_are(accelerator: Accelerator) -> None:
    class Cut:
        too_long = ()

        def __call__(self, conversations: Sequence[Conversation]) -> torch.Tensor:
            self.too_long = (True,) * len(conversations)
            return length(conversations)

    judged = with_rewards([answer("ab"), answer(" \n")], GatedReward(Cut(), too_long="unfinished"), accelerator)
    assert [(a.reward, a.finished) for a in judged] == [(2.0, False), (2.0, True)]


class Cutting:
    """Scores the length, and had to cut what is longer than two letters."""

    def __call__(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        self.too_long = [len(c[-1]["content"]) > 2 for c in conversations]
        return length(conversations)


def test_an_answer_that_a_judge_saw_cut_is_unfinished_or_refused(accelerator: Accelerator) -> None:
    answers = [answer("abc"), answer("a")]
    cut = with_scores(answers, "safety", Cutting(), accelerator)
    assert [(a.safety, a.finished) for a in cut] == [(3.0, True), (1.0, True)]
    ended = with_scores(answers, "safety", Cutting(), accelerator, "unfinished")
    assert [(a.safety, a.finished) for a in ended] == [(3.0, False), (1.0, True)]
    with pytest.raises(InputError, match="safety: 1 of 2 answers with their prompts are longer than its context"):
        with_scores(answers, "safety", Cutting(), accelerator, "refuse")


def test_referee_scores(accelerator: Accelerator) -> None:
    assert [a.referee for a in with_referee([answer("ab"), answer("a")], length, accelerator)] == [2.0, 1.0]


def test_only_empty_answers_are_an_input_error(accelerator: Accelerator) -> None:
    with pytest.raises(InputError, match="all of its answers are empty"):
        with_referee([answer("")], length, accelerator)


@dataclass(frozen=True)
class _Verdict:
    helpfulness: float = 0.5
    safety: float = 1.0
    violation: bool = False
    false_refusal: bool = False
    kind: str = "ordinary"
    words: int = 3


class Scorer:
    def __init__(self, world: Path) -> None:
        self.world = world

    def judge(self, conversation: Conversation) -> _Verdict:
        assert conversation[-1]["role"] == "assistant" and self.world.is_dir()
        return _Verdict(helpfulness=0.25)


class BrokenScorer(Scorer):
    def judge(self, conversation: Conversation) -> _Verdict:
        raise KeyError("no such town")


class NoScorer:
    def __init__(self, world: Path) -> None: ...


@dataclass
class _Poor:
    helpfulness: float = 0.5


class PoorScorer(Scorer):
    def judge(self, conversation: Conversation) -> _Poor:  # type: ignore[override]
        return _Poor()


def test_gold_scorer_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    scorer = load_scorer("test_judging:Scorer", tmp_path)
    gold = with_gold([answer("")], scorer)[0].gold
    assert gold == {
        "helpfulness": 0.25,
        "safety": 1.0,
        "violation": False,
        "false_refusal": False,
        "kind": "ordinary",
        "words": 3,
    }
    said = r"scorer: test_judging:BrokenScorer fails \(KeyError: 'no such town', .*test_judging.py:\d+\)"
    with pytest.raises(InputError, match=said):
        with_gold([answer("")], load_scorer("test_judging:BrokenScorer", tmp_path))
    with pytest.raises(InputError, match="has no method judge"):
        load_scorer("test_judging:NoScorer", tmp_path)
    with pytest.raises(InputError, match="lacks safety, violation"):
        with_gold([answer("a")], load_scorer("test_judging:PoorScorer", tmp_path))


@pytest.mark.parametrize("spec", ["no_such_module:Scorer", "test_judging:Nobody", "scorer.py", ""])
def test_a_scorer_that_is_not_there_is_an_input_error(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(InputError, match="scorer: "):
        load_scorer(spec, tmp_path)


def test_kl_is_the_sum_over_tokens() -> None:
    own, other = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    [(k1, k3)] = answer_kls([own], [other])
    assert k1 == pytest.approx(0.5 - 1.0)
    assert k3 == pytest.approx((math.exp(-0.5) - 1 + 0.5) + (math.exp(1.0) - 1 - 1.0))


def test_kl_of_a_policy_to_itself_is_0_and_to_another_is_not(tiny_policy_path: Path, accelerator: Accelerator) -> None:
    policy = load_policy(tiny_policy_path)
    rows = [([0, 5, 6], [7, 8, 9]), ([0, 5], [9])]
    own = answer_logprobs(policy, rows, 2, accelerator)
    assert [len(row) for row in own] == [3, 1]
    assert answer_kls(own, answer_logprobs(policy, rows, 2, accelerator)) == [(0.0, 0.0), (0.0, 0.0)]
    with torch.no_grad():
        policy.model.embed_tokens.weight += torch.randn(
            policy.model.embed_tokens.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    assert all(k3 > 0 for _, k3 in answer_kls(own, answer_logprobs(policy, rows, 2, accelerator)))


def test_another_tokenizer_has_no_kl(tiny_policy_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy_path)
    require_same_tokenizer(tokenizer, tiny_policy_path)
    other = load_tokenizer(tiny_policy_path)
    other.add_tokens(["brandnew"])
    policy = load_policy(tiny_policy_path)
    policy.resize_token_embeddings(len(other))
    policy.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="baseline: the tokenizer"):
        require_same_tokenizer(tokenizer, tmp_path / "other")


def test_judging_keeps_the_rest_of_an_answer(accelerator: Accelerator) -> None:
    row = replace(answer("a"), kl=0.5)
    assert with_referee([row], length, accelerator) == [replace(row, referee=1.0)]
