"""Preferences of files that several lists name: each file is parsed once, whatever it is called there. Light."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from rlhf.data.loading import (
    OnBadRow,
    Source,
    domain_of,
    preference_reader,
    read_source,
    short_name,
    source_path,
    untagged,
)
from rlhf.data.rows import Domain, Preference

Identity = tuple[object, ...]


def source_identity(source: Source) -> Identity:
    """Equal for two names of one file, by its place, size and time of change, that say the same of its rows.

    What names say is their tags (domain, layout) and how the ids of rows without one begin. A folder and a hub name are
    known by their names alone.
    """
    path = source_path(source)
    if path is None or not path.is_file():
        return (os.fspath(source),)
    there = path.stat()
    tags = os.fspath(source).removeprefix(untagged(source))
    return path.resolve(), there.st_size, there.st_mtime_ns, tags, short_name(source)


@dataclass
class _Kept:
    """What is left of a file that was parsed, until the last list that names it has had its rows.

    Args:
        untagged_domain: that rows without a domain counted as.
        tagged: whether rows have a domain, or their source's name gives one.
        rows: those of `domains`, a line of JSON each.
        counts: rows by their domain.
        left_out: rows that were skipped, by reason.
    """

    untagged_domain: Domain
    tagged: bool
    rows: IO[bytes]
    domains: frozenset[Domain]
    counts: Counter[Domain]
    left_out: Counter[str]

    def has(self, untagged_domain: Domain, wanted: Sequence[Domain]) -> bool:
        """Whether these are the rows that parsing the file again would give."""
        missing = {domain for domain in wanted if self.counts[domain]} - self.domains
        return not missing and (self.tagged or self.untagged_domain == untagged_domain)

    def read(self, wanted: Sequence[Domain], skipped: Counter[str]) -> Iterator[Preference]:
        self.rows.seek(0)
        for line in self.rows:
            row = Preference(**json.loads(line))
            if row.domain in wanted:
                yield row
        skipped.update({_of(domain): count for domain, count in self.counts.items() if domain not in wanted})
        skipped.update(self.left_out)


class SharedReading:
    """Reads the preferences of several lists of sources one by one, for more rows than memory holds.

    A local file that is named again is parsed once: rows that a later naming asks for lie in a file without a name.

    Args:
        namings: (source, domains that are wanted of it) of all lists, in the order in which they are read.
        on_bad_row: see `load_preferences`.
        folder: for those files; None: that of temporary files.
    """

    def __init__(
        self, namings: Iterable[tuple[Source, Sequence[Domain]]], on_bad_row: OnBadRow, folder: Path | None = None
    ) -> None:
        self._coming: dict[Identity, list[Sequence[Domain]]] = defaultdict(list)
        for source, wanted in namings:
            self._coming[source_identity(source)].append(wanted)
        self._kept: dict[Identity, _Kept] = {}
        self._on_bad_row: OnBadRow = on_bad_row
        self._folder = folder

    def read(
        self, source: Source, untagged_domain: Domain, wanted: Sequence[Domain], skipped: Counter[str]
    ) -> Iterator[Preference]:
        """The rows of the wanted domains of a source; those of others are counted, as is what else was left out.

        Args:
            untagged_domain: of rows where neither they nor the source's name give a domain, of a source where all are
                so (InputError where some rows of a local file have one).
            skipped: what was left out is added here, by reason.
        """
        identity = source_identity(source)
        coming = self._coming[identity]
        del coming[:1]
        kept = self._kept.get(identity)
        if kept is None or not kept.has(untagged_domain, wanted):
            again = frozenset(domain for later in coming for domain in later)
            yield from self._parsed(source, untagged_domain, wanted, again, skipped)
        else:
            yield from kept.read(wanted, skipped)
        if not coming:
            self._kept.pop(identity, None)

    def _parsed(
        self,
        source: Source,
        untagged_domain: Domain,
        wanted: Sequence[Domain],
        again: frozenset[Domain],
        skipped: Counter[str],
    ) -> Iterator[Preference]:
        reader = preference_reader(source, untagged_domain=untagged_domain)
        path = source_path(source)
        spilled = bool(again) and path is not None and path.is_file()
        tagged = domain_of(source) is not None

        def parts(rows: list[dict[str, Any]], unused: Counter[str]) -> list[Any]:
            nonlocal tagged
            tagged |= rows[0].get("domain") is not None
            return reader.parts(rows, unused)

        counts: Counter[Domain] = Counter()
        left_out: Counter[str] = Counter()
        file = tempfile.TemporaryFile(dir=self._folder) if spilled else None  # noqa: SIM115  # as long as it is kept
        for row in read_source(source, replace(reader, parts=parts), self._on_bad_row, left_out):
            counts[row.domain] += 1
            if file is not None and row.domain in again:
                file.write(json.dumps(vars(row), ensure_ascii=False).encode() + b"\n")
            if row.domain in wanted:
                yield row
            else:
                skipped[_of(row.domain)] += 1
        skipped.update(left_out)
        if file is not None:
            self._kept[source_identity(source)] = _Kept(untagged_domain, tagged, file, again, counts, left_out)


def _of(domain: Domain) -> str:
    return f"of domain {domain}"
