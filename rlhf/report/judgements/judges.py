"""What judge models say of a run's versions: who wins on either axis, and how far the judges can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf.report.drawing.figures import BLUE, ORANGE, Panel, Series, lines
from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import in_a_sentence, interval, percent, version_label
from rlhf.rewards.pair_judge import JudgeAgreement, agreement

if TYPE_CHECKING:
    from rlhf.evaluation.policies.versions import VersionFigures

RATES = (
    ("judge_win_rate", "judge_win_rate_ci"),
    ("judge_win_rate_helpfulness", "judge_win_rate_helpfulness_ci"),
    ("judge_win_rate_safety", "judge_win_rate_safety_ci"),
)
COUNTS = ("pairs", "decided", "ties", "order_decides", "unreadable")


def judge_table(versions: Sequence[VersionFigures]) -> Table | None:
    """A row a version that judge models were asked about, and where there are several one for each of them below it;
    None where there is none."""
    judged = [version for version in versions if version.get("judge_counts")]
    if not judged:
        return None
    heads = [
        ("Version", ""),
        ("Judge", "the model that compares"),
        ("Opponent", "whose answers to the same prompts this version's are compared with"),
        ("Wins", "share of the comparisons; ties, and verdicts that the order decides, count half"),
        ("Wins, helpfulness", "the same on prompts of the domain helpfulness"),
        ("Wins, safety", "the same on prompts of the domain safety"),
        ("Asked", "pairs that differ and are not empty, each in both orders"),
        ("Decided", "the same answer wins in both orders; of several judges more choose it than the other"),
        ("Ties", "the judge calls it one in both orders; of several as many choose either"),
        ("Order decides", "its verdict turns round with the answers: counted as a tie"),
        ("Unreadable", "no verdict, or the server refused it: left out"),
    ]
    rows = []
    for v in judged:
        alone = v.get("judges", [])
        several = len(alone) > 1
        for place, own in enumerate([v, *(alone if several else ())]):
            rates = [Cell(percent(own.get(rate)), interval(own.get(ci), 1, share=True)) for rate, ci in RATES]
            judge = "majority" if several and place == 0 else own["judge_model"]
            names = [Cell(version_label(v["name"])), Cell(judge), Cell(in_a_sentence(v["judge_opponent"]))]
            rows.append([*names, *rates, *(Cell(str(own["judge_counts"][name])) for name in COUNTS)])
    return Table(heads, rows)


def agreement_table(versions: Sequence[VersionFigures]) -> Table | None:
    """How far several judges agree, over all versions; None where nowhere two were asked."""
    counts: dict[tuple[str, ...], list[int]] = {}
    for version in versions:
        for own in version.get("judge_agreement", []):
            found = counts.setdefault(tuple(own["judges"]), [0, 0])
            found[0] += own["pairs"]
            found[1] += own["same"]
    return judges_table([agreement(judges, *found) for judges, found in counts.items()]) if counts else None


def judges_table(agreements: Sequence[JudgeAgreement]) -> Table:
    """A row for each two judges."""
    heads = [
        ("Judges", ""),
        ("Both decided", "pairs of which either chose an answer, in both orders alike"),
        ("Same answer", "of these"),
        ("Disagree", "of these"),
    ]
    rows = []
    for own in agreements:
        share = Cell(percent(own["rate"]), interval(own["ci"], 1, share=True))
        rows.append([Cell(" and ".join(own["judges"])), Cell(str(own["pairs"])), share])
        rows[-1].append(Cell(str(own["pairs"] - own["same"])))
    return Table(heads, rows)


def judge_panels(versions: Sequence[VersionFigures]) -> list[Panel]:
    """Wins on both axes, version by version, by the majority of several judges; none where no judge model was asked."""
    judged = [version for version in versions if version.get("judge_counts")]
    opponents = dict.fromkeys(in_a_sentence(v["judge_opponent"]) for v in judged)
    x = range(len(judged))
    series = [
        Series(label, colour, x, [v.get(rate) for v in judged], [v.get(ci) for v in judged])  # type: ignore[misc]
        for label, colour, (rate, ci) in zip(("helpfulness", "safety"), (BLUE, ORANGE), RATES[1:], strict=True)
    ]
    several = any(len(v.get("judges", [])) > 1 for v in judged)
    panel = lines(
        f"Wins against {' and '.join(opponents)} by {'the majority of judge models' if several else 'a judge model'}",
        series,
        names=[version_label(version["name"]) for version in judged],
        percent=True,
        reference=0.5,
        note="Asked in both orders; ties, and verdicts that the order decides, count half.",
    )
    return [] if panel is None else [panel]
