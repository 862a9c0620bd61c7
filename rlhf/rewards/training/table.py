"""Tokenized pairs as an Arrow table: in a file that all processes map into their memory and so share, or in memory.

Light: pyarrow when called.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, overload

from rlhf.data.rows import Preference
from rlhf.data.splitting import first_turn
from rlhf.rewards.training.pairs import Pair

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class PairTable(Sequence[Pair]):
    """Pairs that are made as they are asked for: a table of any size takes no memory of a process's own.

    Args:
        table: by `pair_schema`.
        order: numbers of its rows, in the order that the pairs have; None: all, as they stand.
    """

    def __init__(self, table: pa.Table, order: Sequence[int] | None = None) -> None:
        import numpy as np

        self._table = table
        self._order = None if order is None else np.asarray(order, dtype=np.int64)
        self._read = [table[name] for name in ("row", "chosen", "rejected", "cut")]

    @classmethod
    def of(cls, pairs: Sequence[Pair], whole: Sequence[Preference] | None = None) -> PairTable:
        """Of pairs in memory. `whole`: their preferences with all their turns; None: none has been cut."""
        import pyarrow as pa

        return cls(pa.Table.from_batches([pair_batch(pairs, whole)]))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PairTable:
        """Of a file that `write_pairs` wrote, mapped into memory."""
        import pyarrow as pa

        return cls(pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all())

    def __len__(self) -> int:
        return self._table.num_rows if self._order is None else len(self._order)

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if self._order is not None:
            place = int(self._order[place])
        row, chosen, rejected, cut = (column[place] for column in self._read)
        preference = Preference(**json.loads(row.as_py()))
        return Pair(preference, _ids(chosen), _ids(rejected), cut=cut.as_py())

    @property
    def preferences(self) -> Sequence[Preference]:
        """Those of the pairs, cut as their ids are; each is made as it is asked for."""
        return _Preferences(self)

    def followed_by(self, other: PairTable, order: Sequence[int] | None = None) -> PairTable:
        """Of these pairs and those of another whole table behind them, the ones of these numbers; None: all."""
        import pyarrow as pa

        return PairTable(pa.concat_tables([self._table, other._table]), order)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of `pair_schema`, in the order that the pairs have."""
        found = self._table[name]
        return found if self._order is None else found.take(self._order)

    def sources(self) -> Counter[str]:
        """Source -> pairs, in the order in which they come up first."""
        counts = self.column("source").value_counts()
        return Counter(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))

    def strengths(self) -> set[str | None]:
        """Those that occur."""
        return set(self.column("strength").unique().to_pylist())

    def shared_ids(self, other: PairTable) -> int:
        """How many ids occur here and there."""
        from pyarrow import compute

        mine, theirs = self.column("id").unique(), other.column("id").unique()
        return int(compute.sum(compute.is_in(mine, value_set=theirs)).as_py() or 0)

    def cut(self) -> int:
        """How many have lost their oldest turns."""
        return int(self.column("cut").to_numpy().sum())

    def lengths(self) -> np.ndarray:
        """`Pair.length` of each."""
        import numpy as np
        from pyarrow import compute

        sides = (compute.list_value_length(self._table[name]).to_numpy() for name in ("chosen", "rejected"))
        longest: np.ndarray = np.maximum(*sides)
        return longest if self._order is None else longest[self._order]

    def seen_in(self, *others: PairTable) -> int:
        """Pairs whose first user's message, before anything was cut, opens a pair of the others' too."""
        import numpy as np

        mine, *theirs = (table.column("opening").to_numpy().astype(np.uint64) for table in (self, *others))
        return int(np.isin(mine, np.concatenate(theirs)).sum())


class _Preferences(Sequence[Preference]):
    def __init__(self, pairs: PairTable) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> Preference: ...

    @overload
    def __getitem__(self, index: slice) -> list[Preference]: ...

    def __getitem__(self, index: int | slice) -> Preference | list[Preference]:
        if isinstance(index, slice):
            return [pair.preference for pair in self._pairs[index]]
        return self._pairs[index].preference


@cache
def pair_schema() -> pa.Schema:
    """The columns: `row` is the preference as JSON, cut as the ids are; `opening` 64 bits of a hash of the first user's
    message (`first_turn`) of the whole one. The rest is there to be counted without reading the rows."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    texts = {name: pa.string() for name in ("row", "id", "source", "strength")}
    return pa.schema({**texts, "chosen": ids, "rejected": ids, "cut": pa.bool_(), "opening": pa.uint64()})


def pair_batch(pairs: Sequence[Pair], whole: Sequence[Preference] | None = None) -> pa.RecordBatch:
    """Pairs as rows of a table; `whole` as for `PairTable.of`."""
    import pyarrow as pa

    rows = [pair.preference for pair in pairs]
    columns: dict[str, list[Any]] = {
        "row": [json.dumps(vars(row), ensure_ascii=False) for row in rows],
        "id": [row.id for row in rows],
        "source": [row.source for row in rows],
        "strength": [row.strength for row in rows],
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
        "cut": [pair.cut for pair in pairs],
        "opening": [_opening(row) for row in (rows if whole is None else whole)],
    }
    return pa.RecordBatch.from_pydict(columns, schema=pair_schema())


def write_pairs(path: str | os.PathLike[str], batches: Iterable[pa.RecordBatch]) -> None:
    """Write a file that `PairTable.open` reads, batch by batch as they come."""
    import pyarrow as pa

    with pa.ipc.new_file(os.fspath(path), pair_schema()) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _ids(side: pa.ListScalar) -> list[int]:
    ids: list[int] = side.values.to_numpy().tolist()
    return ids


def _opening(row: Preference) -> int:
    digest = hashlib.blake2b(first_turn(row.messages).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
