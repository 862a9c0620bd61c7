"""What versions and branches gain over the start: as they are, at equal length, and by finished answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from rlhf.report.drawing.tables import Cell, Table
from rlhf.report.drawing.text import NOTHING, first_label, interval, signed, version_label
from rlhf.report.run.tables import REFEREE

if TYPE_CHECKING:
    from rlhf.evaluation.policies.versions import VersionFigures

SCORES = {
    "proxy_reward": ("Reward", "mean gated reward, by the models that train"),
    "proxy_helpfulness": ("Helpfulness model", "its raw score"),
    "proxy_safety": ("Safety model", "its raw score"),
    "referee": ("Referee", REFEREE),
}
WAYS = {"": "gain", ", equal length": "gain_equal_length", ", finished answers": "gain_finished"}


def gain_table(versions: Sequence[VersionFigures]) -> Table | None:
    """Rows of each version but the first: its mean lead over the first one's answers, in each of WAYS.

    None where no version has such a lead.
    """
    rows = [
        (f"{version_label(v['name'])}{said}", way, cast("dict[str, Any]", v))
        for v in versions
        for said, way in WAYS.items()
    ]
    known = [name for name in SCORES if any(v.get(f"{name}_gain") is not None for _, _, v in rows)]
    if not known:
        return None
    first = first_label([v["name"] for v in versions])
    heads = [
        (
            f"Over {first}",
            "equal length: the lead regressed on the lead in tokens, over the prompts, read where that is none; "
            "finished answers: between those that came to their end alone, as a judge may like or dislike cut ones",
        ),
        *(SCORES[name] for name in known),
        ("Tokens", "per answer"),
    ]
    return Table(
        heads,
        [
            [
                Cell(label),
                *(_cell(v, f"{name}_{way}", 2) for name in known),
                _cell(v, "length_gain", 1) if way == "gain" else Cell(NOTHING),
            ]
            for label, way, v in rows
            if any(v.get(f"{name}_{way}") is not None for name in known)
        ],
    )


def _cell(version: dict[str, Any], name: str, digits: int) -> Cell:
    value = version.get(name)
    if value is None:
        return Cell(NOTHING)
    return Cell(signed(value, digits), interval(version.get(f"{name}_ci"), digits))
