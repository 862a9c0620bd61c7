"""Preferences as tokenized pairs in files: made once, by all cores of a machine, for all processes of a launch.

    folder/own.arrow other.arrow test.arrow test_other.arrow    the parts of `RewardRows`, a `PairTable` each
    folder/cut_off.arrow                                        likewise, where a share of such pairs is asked for
    folder/skipped.json                                         what was left out

A row is read once, and in memory for as long as it takes to write it. Light: transformers and pyarrow when called.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.conversation import Renderer
from rlhf.data.cores import chunks_of, on_all_cores
from rlhf.data.loading import OnBadRow, Source
from rlhf.data.rows import Domain, Preference
from rlhf.jsonl import read_json
from rlhf.models.checkpoint.context import Context, TooLongRow
from rlhf.models.policy import load_tokenizer
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.cut_off import cut_off_pairs
from rlhf.rewards.training.pairs import fit_pairs, say_skipped, too_long_pair
from rlhf.rewards.training.rows import RewardRows, load_reward_rows
from rlhf.rewards.training.table import PairTable, pair_batch, write_pairs
from rlhf.stage import write_json
from rlhf.stage.progress import counted

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 2000
"""Pairs that a process tokenizes at once: some megabytes."""
PARTS = ("own", "other", "test", "test_other")
CUT_OFF, SKIPPED = "cut_off", "skipped.json"


@dataclass(frozen=True)
class Tokenizing:
    """How a policy's preferences become pairs: by its tokenizer and its template, as long as it and the training take.

    Args:
        policy: checkpoint folder that the reward model starts from.
        config: `max_length` and `too_long`.
    """

    policy: str | os.PathLike[str]
    config: RewardTrainingConfig

    @cached_property
    def renderer(self) -> Renderer:
        """Without a limit of its own."""
        return Renderer(load_tokenizer(self.policy))

    @cached_property
    def limit(self) -> int | None:
        """Most tokens of a dialogue: the lower of max_length and the model's number of positions (None: no limit)."""
        return Context.of_checkpoint(self.policy).limit(self.config.max_length)

    def write(
        self, file: Path, name: str, rows: Iterable[Preference], *, whole: bool = False
    ) -> tuple[PairTable, Counter[str]]:
        """Write rows as pairs that fit; returns them, from the file, and how many of a source are too long.

        The first rows are read before anything heavy is loaded: what is wrong with a small file is said at once.

        Args:
            name: of the field, for messages.
            whole: they are as long as they are.

        Raises:
            InputError: a row is too long, and none may be; whatever reading them raises.
        """
        chunks = chunks_of(counted(rows, name), CHUNK)
        first = list(islice(chunks, 1))
        limit = None if whole else self.limit
        left_out: Counter[str] = Counter()

        def batches() -> Iterator[pa.RecordBatch]:
            work = partial(_tokenized, self.renderer, limit, self.config.too_long, name)
            for batch, skipped in on_all_cores(work, chain(first, chunks)):
                left_out.update(skipped)
                yield batch

        write_pairs(file, batches())
        pairs = PairTable.open(file)
        say_skipped(left_out.total(), left_out.total() + len(pairs), limit, name)
        return pairs, left_out

    def require_fit(self, pairs: PairTable) -> None:
        """InputError where one of the pairs to train on is too long; it names the first."""
        if self.limit is not None:
            lengths = pairs.lengths()
            for number in (lengths > self.limit).nonzero()[0][:1].tolist():
                raise too_long_pair(pairs[number].preference.id, int(lengths[number]), self.limit, "preferences")


def write_reward_rows(
    folder: Path,
    tokenizing: Tokenizing,
    domain: Domain,
    preferences: Sequence[Source],
    other_preferences: Sequence[Source],
    test_preferences: Sequence[Source],
    on_bad_row: OnBadRow = "refuse",
    *,
    cut_off_share: float = 0.0,
    seed: int = 0,
) -> None:
    """Read, check and tokenize a reward model's rows into an empty folder, from which `open_reward_rows` has them.

    Args:
        folder, tokenizing: where, and by what.
        domain, preferences, other_preferences, test_preferences, on_bad_row: see `load_reward_rows`, which also says
            what is refused. Where a pair that is too long is refused, one of the other rows still may be: they are
            drawn from (`Tokenizing.require_fit`).
        cut_off_share, seed: see `cut_off_pairs`.
    """

    def keep(part: str, field: str, rows: Iterable[Preference]) -> tuple[PairTable, Counter[str]]:
        drawn_from = part == "other" and tokenizing.config.too_long == "refuse"
        return tokenizing.write(_file(folder, part), field, rows, whole=drawn_from)

    rows = load_reward_rows(domain, preferences, other_preferences, test_preferences, keep, on_bad_row, folder)
    if cut_off_share:
        made = cut_off_pairs(rows.own, cut_off_share, tokenizing.renderer, seed)
        write_pairs(_file(folder, CUT_OFF), (pair_batch(pairs) for pairs in made))
    write_json(folder / SKIPPED, rows.skipped)


def open_reward_rows(folder: Path, domain: Domain) -> RewardRows:
    """What `write_reward_rows` wrote, mapped into memory."""
    skipped = {
        field: {source: Counter(reasons) for source, reasons in sources.items()}
        for field, sources in read_json(folder / SKIPPED).items()
    }
    own, other, test, test_other = (PairTable.open(_file(folder, part)) for part in PARTS)
    cut_off = PairTable.open(_file(folder, CUT_OFF)) if _file(folder, CUT_OFF).exists() else None
    return RewardRows(domain, own, other, test, test_other, skipped, cut_off)


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.arrow"


def _tokenized(
    renderer: Renderer, limit: int | None, too_long: TooLongRow, name: str, rows: Sequence[Preference]
) -> tuple[pa.RecordBatch, Counter[str]]:
    """The pairs that fit, and those that do not by source."""
    pairs = fit_pairs(rows, renderer, limit, too_long, name)
    left_out = Counter(row.source for number, row in enumerate(rows) if number not in pairs)
    return pair_batch(list(pairs.values()), [rows[number] for number in pairs]), left_out
