"""The preference rows of one reward model: its own domain's, the other domain's to mix in, and the held-out ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.data.loading import OnBadRow, Source, load_preferences, source_path, untagged
from rlhf.data.rows import Domain, Preference
from rlhf.data.splitting import first_turn
from rlhf.errors import InputError
from rlhf.paths import require_files

OTHER: dict[Domain, Domain] = {"helpfulness": "safety", "safety": "helpfulness"}


def local_files(**fields: Sequence[Source]) -> dict[str, Path]:
    """Name -> path of the sources that are files (not hub names); InputError where one does not exist. Cheap."""
    found = {}
    for field, sources in fields.items():
        for number, source in enumerate(sources):
            path = source_path(source)
            if path is not None:
                require_files(**{field: path})
                found[f"{field}.{number}"] = path
    return found


Skipped = dict[str, dict[str, Counter[str]]]


@dataclass(frozen=True)
class RewardRows:
    """own: to train on; other: of the other kind, to mix in; test and test_other: held out, of either domain.

    `skipped` says what was left out: field -> file or hub name -> reason -> rows.
    """

    domain: Domain
    own: list[Preference]
    other: list[Preference]
    test: list[Preference]
    test_other: list[Preference]
    skipped: Skipped


def load_reward_rows(
    domain: Domain,
    preferences: Sequence[Source],
    other_preferences: Sequence[Source],
    test_preferences: Sequence[Source],
    on_bad_row: OnBadRow = "refuse",
) -> RewardRows:
    """Read a reward model's rows; rows of another domain than the one looked for are left out, and counted.

    A source whose rows carry no `domain` (HH, trl, the open sets) is taken as wholly of one: that which its name gives
    (`rows.jsonl#safety`), else `domain` in preferences and test_preferences, the other one in other_preferences.

    Raises:
        InputError: preferences hold no row of `domain`; some rows of a source carry a domain and others do not; rows
            would count as helpfulness and as safety.
    """
    other = OTHER[domain]
    skipped: Skipped = {"preferences": {}, "other_preferences": {}, "test_preferences": {}}
    own_rows = _load(preferences, domain, (domain,), on_bad_row, skipped["preferences"])[domain]
    if not own_rows:
        names = ", ".join(os.fspath(source) for source in preferences)
        raise InputError(f"preferences: {names} hold no row of domain {domain}; name others, or tag the rows")
    other_rows = _load(other_preferences, other, (other,), on_bad_row, skipped["other_preferences"])[other]
    _refuse_twice(domain, preferences, other_preferences, own_rows, other_rows)
    test = _load(test_preferences, domain, (domain, other), on_bad_row, skipped["test_preferences"])
    return RewardRows(domain, own_rows, other_rows, test[domain], test[other], skipped)


def _load(
    sources: Sequence[Source],
    fallback: Domain,
    wanted: Sequence[Domain],
    on_bad_row: OnBadRow,
    skipped: dict[str, Counter[str]],
) -> dict[Domain, list[Preference]]:
    rows: dict[Domain, list[Preference]] = {"helpfulness": [], "safety": []}
    for source in sources:
        reasons = skipped[os.fspath(source)] = Counter()
        for row in load_preferences(source, untagged_domain=fallback, on_bad_row=on_bad_row, skipped=reasons):
            if row.domain in wanted:
                rows[row.domain].append(row)
            else:
                reasons[f"of domain {row.domain}"] += 1
    return rows


def _refuse_twice(
    domain: Domain,
    preferences: Sequence[Source],
    other_preferences: Sequence[Source],
    own: Sequence[Preference],
    other: Sequence[Preference],
) -> None:
    """InputError where a source named twice has rows that count as either domain, as they say nothing themselves."""
    shared = {untagged(source) for source in preferences} & {untagged(source) for source in other_preferences}
    twice = {row.id for row in own} & {row.id for row in other} if shared else set()
    if twice:
        name = min(shared)
        raise InputError(
            f"other_preferences: {name} stands in preferences too, and its rows carry no domain: {len(twice)} of them "
            f"would count as helpfulness and again as safety; say what they are by {name}#{domain}, or name it once"
        )


def seen_prompts(test: Sequence[Preference], training: Sequence[Preference]) -> int:
    """Held-out rows whose first user's message opens a training row too: above 0, held-out figures flatter."""
    first = {first_turn(row.messages) for row in training}
    return sum(first_turn(row.messages) in first for row in test)
