"""A reward function whose conversations are dealt out: each is scored once, by one process, and all get every score."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from rlhf.conversation import Conversation
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.rewards.distributed import answer_scores, deal_out, dealt_out, score_answers
from rlhf.rewards.gate import GatedReward
from rlhf.training.accelerator import make_accelerator


class Launch:
    """Two processes as two threads; `gather_object` is theirs."""

    def __init__(self) -> None:
        self.rank, self.barrier = threading.local(), threading.Barrier(2, timeout=60)
        self.given: list[list[Any]] = [[], []]
        self.kind: dict[str, Any] = {"distributed_type": DistributedType.MULTI_CPU}

    def gather_object(self, some: list[Any]) -> list[Any]:
        self.given[self.rank.number] = some
        self.barrier.wait()
        together = [*self.given[0], *self.given[1]]
        self.barrier.wait()
        return together

    def run(self, work: Any) -> list[Any]:
        def one(number: int) -> Any:
            self.rank.number = number
            return work(number, SimpleNamespace(process_index=number, num_processes=2, **self.kind))

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    made = Launch()
    monkeypatch.setattr("accelerate.utils.gather_object", made.gather_object)
    return made


def asked(prompt: int, answer: float) -> Conversation:
    return [{"role": "user", "content": f"q{prompt}"}, {"role": "assistant", "content": str(answer)}]


# the chosen answers of five pairs, then the rejected ones: a pair's two lie apart
CONVERSATIONS = [asked(prompt, prompt + side / 2) for side in (0, 1) for prompt in range(5)]


def test_each_process_scores_its_part_and_gets_all_scores(launch: Launch) -> None:
    seen: list[list[Conversation]] = [[], []]

    def work(number: int, accelerator: Any) -> Tensor:
        def reward(conversations: Sequence[Conversation]) -> Tensor:
            seen[number] += conversations
            return torch.tensor([float(one[-1]["content"]) for one in conversations])

        return dealt_out(reward, accelerator)(CONVERSATIONS)

    expected = [float(one[-1]["content"]) for one in CONVERSATIONS]
    assert [scores.tolist() for scores in launch.run(work)] == [expected, expected]
    prompts = [{one[0]["content"] for one in part} for part in seen]
    assert [len(part) for part in seen] == [6, 4], "each is scored once"
    assert not prompts[0] & prompts[1], "answers to one prompt stay together"


def test_a_failure_of_one_process_ends_both(launch: Launch) -> None:
    def work(number: int, accelerator: Any) -> str:
        def reward(conversations: Sequence[Conversation]) -> Tensor:
            return torch.full((len(conversations),), float("nan") if number else 1.0)

        with pytest.raises(InputError, match="not finite") as raised:
            dealt_out(reward, accelerator)(CONVERSATIONS)
        return str(raised.value)

    first, second = launch.run(work)
    assert first == second


@pytest.mark.parametrize(("zero_stage", "calls"), [(None, [1, 0]), (2, [1, 0]), (3, [1, 1])])
def test_only_who_gathers_weights_calls_without_a_part(
    launch: Launch, zero_stage: int | None, calls: list[int]
) -> None:
    """Fewer items than processes: a call more is the user's money, where the reward function is a server's."""
    if zero_stage is not None:
        plugin = SimpleNamespace(zero_stage=zero_stage)
        launch.kind = {"distributed_type": DistributedType.DEEPSPEED, "state": SimpleNamespace(deepspeed_plugin=plugin)}
    dealt, answered = [0, 0], [0, 0]

    def work(number: int, accelerator: Any) -> tuple[list[float], list[float]]:
        def double(items: Sequence[float]) -> list[float]:
            dealt[number] += 1
            return [2 * item for item in items]

        def reward(conversations: Sequence[Conversation]) -> Tensor:
            answered[number] += 1
            return torch.ones(len(conversations))

        prompts = [Prompt([{"role": "user", "content": "q"}], "helpfulness")] * 2
        scores = answer_scores(prompts, ["", "an answer"], reward, "helpfulness", accelerator)  # one is empty
        return deal_out([3.0], double, accelerator), scores.scores.tolist()

    assert launch.run(work) == [([6.0], [1.0, 1.0])] * 2
    assert dealt == calls and sum(answered) == sum(calls)


def test_scores_that_an_attempt_left_are_read_and_not_made_again(tmp_path: Path) -> None:
    """Those of the same answers, to the last bit; of others nothing is read."""
    prompts = [Prompt(str(i), [{"role": "user", "content": "?"}]) for i in range(3)]
    scored: list[int] = []

    def third(conversations: Sequence[Conversation]) -> Tensor:
        scored.append(len(conversations))
        return torch.tensor([len(one[-1]["content"]) / 3 for one in conversations])

    file, accelerator = tmp_path / "scores.json", make_accelerator()
    reward = GatedReward(third)
    first = score_answers(prompts, ["a", "", "abc"], reward, accelerator, file)
    again = score_answers(prompts, ["a", "", "abc"], reward, accelerator, file)
    assert scored == [2] and torch.equal(first.helpfulness, again.helpfulness) and not again.used_safety.any()
    assert again.helpfulness.tolist() == pytest.approx([1 / 3, 1 / 3, 1])
    other = score_answers(prompts, ["a", "", "ab"], reward, accelerator, file)
    assert scored == [2, 2] and other.helpfulness[2] == pytest.approx(2 / 3)
    alone = [answer_scores(prompts[:2], ["a", "b"], third, "x", accelerator, kept=tmp_path / "one.json") for _ in "12"]
    assert scored == [2, 2, 2] and torch.equal(alone[0].scores, alone[1].scores)


def test_scores_that_an_attempt_left_bring_its_warning_of_cut_dialogues(tmp_path: Path) -> None:
    """In another process, whose functions have scored nothing yet; of those alone that know a limit."""

    class Short:
        scored = cut = 0

        def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
            self.scored, self.cut = self.scored + len(conversations), self.cut + len(conversations)
            return torch.zeros(len(conversations))

    def endless(conversations: Sequence[Conversation]) -> Tensor:
        return torch.ones(len(conversations))

    prompts = [Prompt(str(i), [{"role": "user", "content": "?"}]) for i in range(3)]
    file, accelerator = tmp_path / "scores.json", make_accelerator()
    said = []
    for _ in range(2):
        safety = Short()
        safety([[{"role": "user", "content": "tried before"}]])
        reward = GatedReward(endless, safety)
        score_answers(prompts, ["a", "", "abc"], reward, accelerator, file)
        said.append(reward.suspicious())
        assert (safety.scored, safety.cut) == (3, 3)
    assert said[0] == said[1] and said[0][0].startswith("safety scored 100% of its dialogues cut")
