import pytest

from rlhf.annotation.protocol import Pair
from rlhf.annotation.proxy import Proxy
from rlhf.conversation import decided, says_nothing
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.policies.judge_model import judged_outcomes


def test_white_space_alone_says_nothing() -> None:
    assert says_nothing("") and says_nothing(" \n\t\u3000") and not says_nothing(".")


@pytest.mark.parametrize(
    ("a", "b", "outcome"),
    [("x", "y", None), ("x", "x", 0.5), ("x ", "\nx", 0.5), ("", " ", 0.5), ("x", " ", 1.0), ("\n", "x", 0.0)],
)
def test_two_answers_are_decided_alike_by_whoever_compares(a: str, b: str, outcome: float | None) -> None:
    assert decided(a, b) == outcome
    prompt = [{"role": "user", "content": "q"}]
    mine, theirs = (Answer("p", 0, prompt, "helpfulness", "", text, 1, True) for text in (a, b))
    asked = []
    judge = {"judge": lambda requests: asked.extend(requests) or ["[[A]]", "[[B]]"]}
    assert judged_outcomes([mine], [theirs], judge).outcomes == [1.0 if outcome is None else outcome] and bool(
        asked
    ) == (outcome is None)
    (judgement,) = Proxy("rlhf.rewards.examples:ends_a_sentence").judge([Pair(prompt, a, b)])
    assert judgement.skipped == ("a tie" if outcome is None else "nothing to compare")
