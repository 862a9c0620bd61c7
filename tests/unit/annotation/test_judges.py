"""Judge models and rewards as annotators: what they choose, skip and count."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rlhf.annotation.comparison import judge_comparison, match, open_comparison, read_answers
from rlhf.annotation.human_evaluation import human_evaluation
from rlhf.annotation.judges import Judges
from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.proxy import Proxy, strength_of
from rlhf.annotation.store import Store
from rlhf.conversation import Conversation
from rlhf.data.rows import Domain
from rlhf.errors import InputError
from rlhf.jsonl import write_rows
from rlhf.sampling.chat import ServerConfig

if TYPE_CHECKING:
    from chat_server import ChatServer


def pair(a: str, b: str, domain: Domain = "helpfulness", question: str = "Q?") -> Pair:
    return Pair([{"role": "user", "content": question}], a, b, domain)


def answers_of(body: dict[str, Any]) -> tuple[str, str]:
    """A and B as the judge was shown them."""
    found = re.findall(r"\[answer . begins\]\n(.*?)\n\[answer . ends\]", body["messages"][0]["content"], re.DOTALL)
    return found[0], found[1]


def says(server: ChatServer, judge: Any) -> None:
    """`judge(model, a, b)` is the text of the judgement, or a status."""

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        text = "ok" if body["max_tokens"] == 1 else judge(body["model"], *answers_of(body))
        if isinstance(text, int):
            return text, b"too long"
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    server.reply = reply


def longer(model: str, a: str, b: str) -> str:
    return f"[[{'A' if len(a) > len(b) else 'B'} better]]"


def judges(server: ChatServer, *models: str) -> Judges:
    server.models = list(models)
    return Judges([{"url": server.url, "model": model, "retries": 1} for model in models])


def by_pair(annotator: Any, pairs: Sequence[Pair]) -> list[Judgement]:
    found = {judgement.pair: judgement for judgement in annotator.judge(pairs)}
    assert len(found) == len(pairs)
    return [found[each.id] for each in pairs]


def test_a_judge_chooses_where_both_orders_agree(chat_server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    def judge(model: str, a: str, b: str) -> str | int:
        texts = {a, b}
        if "first" in texts:
            return "[[A significantly]]"
        if "mumble" in texts:
            return "well"
        if "huge" in texts:
            return 413
        return "[[tie]]" if "even" in texts else longer(model, a, b)

    says(chat_server, judge)
    pairs = [pair(a, b) for a, b in [("long one", "short"), ("no", "yes"), ("first", "x"), ("mumble", "x")]]
    pairs += [pair("huge", "x"), pair("even", "x"), pair("same ", "same"), pair("", "x")]
    found = by_pair(judges(chat_server, "m"), pairs)
    assert [(j.choice, j.strength) for j in found[:2]] == [("a", "better"), ("b", "better")]
    assert [j.skipped for j in found[2:]] == [
        "the choice hangs on the order",
        "the judgement cannot be read",
        "the judge's server refuses the pair",
        "a tie",
        "nothing to compare",
        "nothing to compare",
    ]
    assert len(chat_server.asked) == 12 and all(body["temperature"] == 0 for body in chat_server.asked)
    assert "judge m: of 6 pairs 2 decided, 1 ties, 1 left to the order, 2 unreadable" in capsys.readouterr().err


def test_a_judge_labels_safety(chat_server: ChatServer) -> None:
    def judge(model: str, a: str, b: str) -> str:
        labels = [f"[[{place} {'un' * ('bad' in text)}safe]]" for place, text in (("A", a), ("B", b))]
        return " ".join([longer(model, a, b), *labels])

    says(chat_server, judge)
    pairs = [pair("good long", "bad", "safety"), pair("bad and long", "good", "safety")]
    found = by_pair(judges(chat_server, "m"), pairs)
    assert (found[0].choice, found[0].chosen_safe, found[0].rejected_safe) == ("a", True, False)
    assert found[1].skipped == "an unsafe answer preferred to a safe one"


def test_a_panel_s_majority_chooses(chat_server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    def judge(model: str, a: str, b: str) -> str:
        if model == "contrary":
            return f"[[{'B' if len(a) > len(b) else 'A'} slightly]]"
        return "[[tie]]" if model == "calm" and "even" in {a, b} else longer(model, a, b)

    says(chat_server, judge)
    found = by_pair(judges(chat_server, "plain", "calm", "contrary"), [pair("long one", "x"), pair("even", "x")])
    assert (found[0].choice, found[0].strength) == ("a", "better")
    assert found[1].skipped == "the judges are divided"
    said = capsys.readouterr().err
    assert "judges plain and calm: agree on 1 of 1" in said and "plain and contrary: agree on 0 of 2" in said


def test_what_was_judged_is_given_out_when_the_judge_fails(chat_server: ChatServer) -> None:
    pairs = [pair("long one", f"x{i}") for i in range(9)]
    says(chat_server, lambda model, a, b: 500 if "x5" in {a, b} else longer(model, a, b))
    came: list[Judgement] = []
    judge = Judges([{"url": chat_server.url, "model": "tiny", "retries": 0, "concurrency": 1}])
    with pytest.raises(InputError, match=r"judge tiny: .* answers 500"):
        came.extend(judge.judge(pairs))
    assert [judgement.pair for judgement in came] == [each.id for each in pairs[:5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judges": []}, r"annotator_options\.judges: must list one server or more"),
        ({"judges": "http://a"}, r"annotator_options\.judges: must list one server or more"),
        ({"judges": [{"url": "http://a/v1"}]}, r"judges\[0\]: needs url and model"),
        ({"judges": [{"url": "http://a/v1", "model": "m", "key": "hidden"}]}, r"judges\[0\]: .* has url, model, key$"),
        ({"judges": [{"url": "a", "model": "m"}]}, r"judges\[0\]\.url: must begin with http"),
        ({"judges": [{"url": "http://a", "model": "m", "retries": "two"}]}, r"judges\[0\]: a value is of another kind"),
    ],
)
def test_bad_judges(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        Judges(**options)
    assert "hidden" not in str(raised.value)


def count(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])


def mildness(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.tensor([-1.0 if "bad" in c[-1]["content"] else 1.0 for c in conversations])


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_a_reward_annotates(importable: None) -> None:
    proxy = Proxy("test_judges:count", tie=1.0, rows=2)
    pairs = [pair("aaaa", "a"), pair("a", "aaa"), pair("aa", "a"), pair("", "a"), pair("aaaaaaaaa", "aaaaaaa")]
    found = by_pair(proxy, pairs)
    assert [(j.choice, j.strength) for j in found] == [
        ("a", "significantly"),  # sigmoid(3) = 0.953
        ("b", "better"),  # sigmoid(2) = 0.881
        (None, None),
        (None, None),
        ("a", "better"),
    ]
    assert [j.skipped for j in found[2:4]] == ["a tie", "nothing to compare"]


def test_strengths_by_the_probability_of_the_choice() -> None:
    logits = [math.log(p / (1 - p)) for p in (0.951, 0.949, 0.801, 0.799, 0.651, 0.649)]
    strengths = ["significantly", "better", "better", "slightly", "slightly", "negligibly"]
    assert [strength_of(x) for x in logits] == [strength_of(-x) for x in logits] == strengths
    assert strength_of(1e9) == "significantly"


def test_noise_draws_by_bradley_and_terry(importable: None) -> None:
    pairs = [pair("aa", "a", question=f"Q{i}?") for i in range(2000)]
    proxy = Proxy("test_judges:count", noise=0.5)
    found = by_pair(proxy, pairs)
    rate = sum(j.choice == "a" for j in found) / len(found)
    assert rate == pytest.approx(1 / (1 + math.exp(-2)), abs=0.03)  # four standard errors
    assert by_pair(proxy, pairs[::-1])[::-1] == found, "order and company change nothing"
    assert by_pair(Proxy("test_judges:count", noise=0.5, seed=1), pairs) != found


def test_a_safety_reward_judges_and_labels_its_domain(importable: None) -> None:
    proxy = Proxy("test_judges:count", safety="test_judges:mildness", safe_above=0.0)
    found = by_pair(proxy, [pair("bad bad", "good", "safety"), pair("bad bad bad", "good"), pair("good", "kind")])
    assert (found[0].choice, found[0].chosen_safe, found[0].rejected_safe) == ("b", True, False)
    assert found[1].skipped == "an unsafe answer preferred to a safe one"
    assert found[2].skipped == "a tie"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1}, "annotator_options.noise: must be 0 or above"),
        ({"tie": "much"}, "annotator_options.tie: must be 0 or above, got 'much'"),
        ({"rows": 0}, "annotator_options.rows: must be at least 1"),
        ({"safe_above": 0.0}, "annotator_options.safe_above: the labels are of a safety reward"),
        ({"reward": "runs/none"}, "reward: runs/none does not exist"),
    ],
)
def test_bad_proxies(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Proxy(**{"reward": "rlhf.rewards.examples:Brevity"} | options)


def test_what_decides_the_judgements_is_asked(chat_server: ChatServer) -> None:
    brevity = "rlhf.rewards.examples:Brevity"
    assert Proxy(brevity).asked == Proxy(brevity, rows=2).asked != Proxy(brevity, noise=1.0).asked
    near = Judges([{"url": chat_server.url, "model": "m"}])
    assert near.asked == Judges([{"url": "http://elsewhere/v1", "model": "m"}]).asked
    assert near.asked != Judges([{"url": chat_server.url, "model": "n"}]).asked


def test_a_judge_takes_a_rater_s_place_and_ties(chat_server: ChatServer, tmp_path: Path) -> None:
    """In a comparison of two models a tie is a rating; one that hangs on the order, and a negligible one, are ties."""

    def judge(model: str, a: str, b: str) -> str:
        if "first" in {a, b}:
            return "[[A significantly]]"
        return f"[[{'A' if len(a) > len(b) else 'B'} negligibly]]" if "hardly" in {a, b} else longer(model, a, b)

    says(chat_server, judge)
    chat_server.models = ["m"]
    for name, texts in (("one", ["long one", "first", "hardly"]), ("other", ["short", "x", "y"])):
        rows = [{"messages": [{"role": "user", "content": f"Q{i}"}], "answer": text} for i, text in enumerate(texts)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    sides = (read_answers(tmp_path / f"{name}.jsonl") for name in ("one", "other"))
    comparison = match(("one", "other"), *sides)
    with Store(tmp_path / "labels.sqlite") as store:
        open_comparison(store, comparison, raters=2)
        for _ in range(2):  # again asks nothing anew
            assert judge_comparison(store, ServerConfig(chat_server.url, "m")).name == "judge m"
        assert len([body for body in chat_server.asked if body["max_tokens"] > 1]) == 6
        store.keep("comparison", Judgement(comparison.pairs[0].id, "ann", "a", "slightly", left="a"))
        store.keep("comparison", Judgement(comparison.pairs[1].id, "ann", "b", "slightly", left="a"))
        figures = human_evaluation(store, comparison)
    assert figures["judges"] == {"judge m": 3} and figures["people"] == {"ann": 2}
    assert figures["judge_agreement"]["judge m"]["pairs"] == 2
    same = figures["judge_agreement"]["judge m"]["same"]
    assert same is not None and same["rate"] == 0.5, "of the long one alone; where the order decides it says tie"
    # medians: 2 and 1 is a win, 0 and -1 a loss, the judge's tie alone a tie
    assert [figures["all"][name]["rate"] for name in ("win", "tie", "loss")] == pytest.approx([1 / 3] * 3)  # type: ignore[literal-required]
