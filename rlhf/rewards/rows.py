"""The preference rows of one reward model: its own domain's, the other domain's to mix in, and the held-out ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.data.loading import OnBadRow, Source, is_local, load_preferences, source_rows
from rlhf.data.open_preferences import is_open_preference
from rlhf.data.rows import Domain, Preference
from rlhf.data.splitting import first_turn
from rlhf.errors import InputError
from rlhf.stage import require_files

OTHER: dict[Domain, Domain] = {"helpfulness": "safety", "safety": "helpfulness"}


def local_files(**fields: Sequence[Source]) -> dict[str, Path]:
    """Name -> path of the sources that are files (not hub names); InputError where one does not exist. Cheap."""
    found = {}
    for field, sources in fields.items():
        for number, source in enumerate(sources):
            if is_local(source):
                require_files(**{field: source})
                found[f"{field}.{number}"] = Path(source)
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

    A source whose rows carry no `domain` (HH, trl, the open sets) is taken as wholly of one: `domain` in preferences
    and test_preferences, the other one in other_preferences.

    Raises:
        InputError: preferences hold no row of `domain`; some rows of a source carry a domain and others do not.
    """
    other = OTHER[domain]
    skipped: Skipped = {"preferences": {}, "other_preferences": {}, "test_preferences": {}}
    own_rows = _load(preferences, domain, (domain,), on_bad_row, skipped["preferences"])[domain]
    if not own_rows:
        names = ", ".join(os.fspath(source) for source in preferences)
        raise InputError(f"preferences: {names} hold no row of domain {domain}; name others, or tag the rows")
    other_rows = _load(other_preferences, other, (other,), on_bad_row, skipped["other_preferences"])[other]
    test = _load(test_preferences, domain, (domain, other), on_bad_row, skipped["test_preferences"])
    return RewardRows(domain, own_rows, other_rows, test[domain], test[other], skipped)


def _load(
    sources: Sequence[Source],
    untagged: Domain,
    wanted: Sequence[Domain],
    on_bad_row: OnBadRow,
    skipped: dict[str, Counter[str]],
) -> dict[Domain, list[Preference]]:
    rows: dict[Domain, list[Preference]] = {"helpfulness": [], "safety": []}
    for source in sources:
        domain = None if _has_tags(source) else untagged
        reasons = skipped[os.fspath(source)] = Counter()
        for row in load_preferences(source, domain=domain, on_bad_row=on_bad_row, skipped=reasons):
            if row.domain in wanted:
                rows[row.domain].append(row)
            else:
                reasons[f"of domain {row.domain}"] += 1
    return rows


def _has_tags(source: Source) -> bool:
    """Whether the source's preferences carry a domain of ours; InputError where some do and some do not."""
    first, tagged = 0, False
    for number, row in source_rows(source):
        is_open = is_open_preference(row)
        if "chosen" not in row and not is_open:
            continue  # no preference: loading refuses it, or skips it
        domain = None if is_open else row.get("domain")
        if not is_local(source):
            return domain in OTHER  # a set of the hub is of one kind, and may call something else a domain
        has_tag = domain is not None
        if first and has_tag != tagged:
            raise InputError(
                f"{source}:{number}: this row {'names a' if has_tag else 'has no'} domain, unlike row {first}; "
                "give every row its domain, or put the rows without one into a file of their own"
            )
        first, tagged = first or number, has_tag
    return tagged


def seen_prompts(test: Sequence[Preference], training: Sequence[Preference]) -> int:
    """Held-out rows whose first user's message opens a training row too: above 0, held-out figures flatter."""
    first = {first_turn(row.messages) for row in training}
    return sum(first_turn(row.messages) in first for row in test)
