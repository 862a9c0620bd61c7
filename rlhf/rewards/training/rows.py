"""The preference rows of one reward model: its own domain's, the other domain's to mix in, and the held-out ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.data.loading import OnBadRow, Source, source_path, untagged
from rlhf.data.rows import Domain, Preference
from rlhf.data.sharing import SharedReading
from rlhf.data.splitting import first_turn
from rlhf.errors import InputError
from rlhf.paths import require_files
from rlhf.rewards.training.table import PairTable

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
Keep = Callable[[str, str, Iterable[Preference]], tuple[PairTable, Counter[str]]]
"""(part of `RewardRows`, field that names it, its rows, of which it takes any number in turn) -> the pairs that are
kept, and how many by source are too long to be."""


@dataclass(frozen=True)
class RewardRows:
    """own: to train on; other: of the other kind, to mix in; test and test_other: held out, of either domain; cut_off:
    further ones to train on (`rlhf.rewards.training.cut_off.cut_off_pairs`), None where none were asked for.

    `skipped` says what was left out: field -> file or hub name (of pairs that are too long the rows' source) -> reason
    -> rows.
    """

    domain: Domain
    own: PairTable
    other: PairTable
    test: PairTable
    test_other: PairTable
    skipped: Skipped
    cut_off: PairTable | None = None


def load_reward_rows(
    domain: Domain,
    preferences: Sequence[Source],
    other_preferences: Sequence[Source],
    test_preferences: Sequence[Source],
    keep: Keep,
    on_bad_row: OnBadRow = "refuse",
    scratch: Path | None = None,
) -> RewardRows:
    """Read a reward model's rows; rows of another domain than the one looked for are left out, and counted.

    A source whose rows carry no `domain` (HH, trl, the open sets) is taken as wholly of one: that which its name gives
    (`rows.jsonl#safety`), else `domain` in preferences and test_preferences, the other one in other_preferences. The
    rows to train on are read one by one: no more of them is in memory than `keep` holds. A file that stands in several
    lists is parsed once (`SharedReading`); `scratch` is the folder for what of it is read later.

    Raises:
        InputError: preferences hold no row of `domain`, or none that is kept; some rows of a source carry a domain and
            others do not; rows would count as helpfulness and as safety.
    """
    other = OTHER[domain]
    skipped: Skipped = {"preferences": {}, "other_preferences": {}, "test_preferences": {}}

    def kept(part: str, field: str, rows: Iterable[Preference]) -> PairTable:
        pairs, too_long = keep(part, field, rows)
        for source, count in too_long.items():
            skipped[field].setdefault(source, Counter())["too long"] += count
        return pairs

    lists: tuple[tuple[str, Sequence[Source], Domain, tuple[Domain, ...]], ...] = (
        ("preferences", preferences, domain, (domain,)),
        ("other_preferences", other_preferences, other, (other,)),
        ("test_preferences", test_preferences, domain, (domain, other)),
    )
    namings = [(source, wanted) for _, sources, _, wanted in lists for source in sources]
    reading = SharedReading(namings, on_bad_row, scratch)

    def read(field: str, sources: Sequence[Source], fallback: Domain, wanted: Sequence[Domain]) -> Iterator[Preference]:
        for source in sources:
            reasons = skipped[field][os.fspath(source)] = Counter()
            yield from reading.read(source, fallback, wanted, reasons)

    own_rows, other_rows, test_rows = (read(*each) for each in lists)
    own_pairs = kept("own", "preferences", _some(domain, preferences, own_rows))
    if not own_pairs:
        raise InputError("preferences: every pair of its own domain is too long; raise training.max_length")
    other_pairs = kept("other", "other_preferences", other_rows)
    _refuse_twice(domain, preferences, other_preferences, own_pairs, other_pairs)
    test = list(test_rows)
    own_test, other_test = (
        kept(part, "test_preferences", [row for row in test if row.domain == which])
        for part, which in (("test", domain), ("test_other", other))
    )
    return RewardRows(domain, own_pairs, other_pairs, own_test, other_test, skipped)


def _some(domain: Domain, sources: Sequence[Source], rows: Iterable[Preference]) -> Iterator[Preference]:
    """The rows; InputError at their end where there were none."""
    there = False
    for row in rows:
        there = True
        yield row
    if not there:
        names = ", ".join(os.fspath(source) for source in sources)
        raise InputError(f"preferences: {names} hold no row of domain {domain}; name others, or tag the rows")


def _refuse_twice(
    domain: Domain,
    preferences: Sequence[Source],
    other_preferences: Sequence[Source],
    own: PairTable,
    other: PairTable,
) -> None:
    """InputError where a source named twice has rows that count as either domain, as they say nothing themselves."""
    shared = {untagged(source) for source in preferences} & {untagged(source) for source in other_preferences}
    if shared and (twice := own.shared_ids(other)):
        name = min(shared)
        raise InputError(
            f"other_preferences: {name} stands in preferences too, and its rows carry no domain: {twice} of them "
            f"would count as helpfulness and again as safety; say what they are by {name}#{domain}, or name it once"
        )


def seen_prompts(test: Sequence[Preference], training: Sequence[Preference]) -> int:
    """Held-out rows whose first user's message opens a training row too: above 0, held-out figures flatter."""
    first = {first_turn(row.messages) for row in training}
    return sum(first_turn(row.messages) in first for row in test)
