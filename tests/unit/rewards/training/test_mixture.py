"""Mixtures: the paper's shares, exactly; the counts are those of the rows."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhf.data.mixing import mix
from rlhf.data.rows import Domain, Preference
from rlhf.rewards.training.kinds import REWARD_KINDS
from rlhf.rewards.training.mixture import make_mixture, mixture_lines, mixture_report
from rlhf.rewards.training.pairs import Pair
from rlhf.rewards.training.rows import RewardRows
from rlhf.rewards.training.table import PairTable


def rows(source: str, count: int) -> list[Preference]:
    question = [{"role": "user", "content": "q"}]
    return [Preference(f"{source}:{i}", question, "a", "b", source=source) for i in range(count)]  # type: ignore[arg-type]


def reward_rows(domain: Domain, own: list[Preference], other: list[Preference]) -> RewardRows:
    parts = (PairTable.of([Pair(row, [1], [2]) for row in part]) for part in (own, other, [], []))
    return RewardRows(domain, *parts, {})


OWN, OTHER = [*rows("meta", 60), *rows("helpful", 30)], [*rows("harmless", 200), *rows("shp", 100)]


@pytest.mark.parametrize(("domain", "others"), [("helpfulness", 90), ("safety", 10)])
def test_the_paper_s_shares_and_counts_by_source(domain: Domain, others: int) -> None:
    mixture = make_mixture(reward_rows(domain, OWN, OTHER), REWARD_KINDS[domain].other_share, seed=1)
    mixed = mix(OWN, OTHER, REWARD_KINDS[domain].other_share, seed=1)
    assert mixture.own == {"meta": 60, "helpful": 30} and mixture.other.total() == others
    assert mixture.own + mixture.other == Counter(pair.preference.source for pair in mixture.rows)
    assert list(mixture.own) == list(dict.fromkeys(row.source for row in mixed if row in OWN)), "in their order"
    assert [pair.preference for pair in mixture.rows] == mixed
    report = mixture_report(mixture, {"preferences": {"meta.jsonl": Counter(tie=2), "helpful.jsonl": Counter()}})
    assert report["pairs"] == 90 + others and report["other_share"] == pytest.approx(REWARD_KINDS[domain].other_share)
    assert report["other_available"] == {"harmless": 200, "shp": 100}
    assert report["skipped"] == {"preferences": {"meta.jsonl": {"tie": 2}}}
    assert mixture_lines(mixture) == [
        "mixture: all 60 own pairs of meta",
        "mixture: all 30 own pairs of helpful",
        f"mixture: {mixture.other['harmless']} of 200 other pairs of harmless",
        f"mixture: {mixture.other['shp']} of 100 other pairs of shp",
    ]


def test_one_source_on_both_sides_and_no_others() -> None:
    both = make_mixture(reward_rows("safety", OWN[:9], OWN[9:20]), 0.1, seed=0)
    assert both.own == {"meta": 9} and both.other == {"meta": 1}
    alone = make_mixture(reward_rows("safety", OWN, []), 0.0, seed=0)
    assert mixture_report(alone, {})["other_share"] == 0 and not alone.other


def test_pairs_of_cut_answers_are_strewn_among_the_others() -> None:
    """They count as no pair of people's, and leave the order of those as it was."""
    own, other, cut = (PairTable.of([Pair(row, [1], [2]) for row in part]) for part in (OWN, OTHER, rows("cut", 9)))
    with_cut = RewardRows("safety", own, other, PairTable.of([]), PairTable.of([]), {}, cut)
    mixture, plain = (make_mixture(each, 0.1, seed=1) for each in (with_cut, reward_rows("safety", OWN, OTHER)))
    assert list(mixture.rows) == list(plain.rows) == list(plain.training)
    assert (mixture.own, mixture.other) == (plain.own, plain.other)
    strewn = [pair.preference.id for pair in mixture.training]
    assert Counter(strewn) == Counter(pair.preference.id for pair in [*plain.rows, *cut])
    assert not all(name.startswith("cut") for name in strewn[-9:])
    assert mixture_report(mixture, {}) == {**mixture_report(plain, {}), "cut_off": 9}
    assert mixture_lines(mixture) == [*mixture_lines(plain), "mixture: 9 pairs of a chosen answer and itself cut off"]
    assert mixture_report(plain, {})["cut_off"] == 0
