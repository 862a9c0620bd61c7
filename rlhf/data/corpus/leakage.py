"""Leakage between splits: rows whose embeddings are too much alike may not stand in two of them (decision 10).

Everything goes block by block: held-out embeddings lie in memory, the training rows' are read from the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rlhf.errors import InputError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
BLOCK = 4096  # rows of either side at once: 64 MB of cosines


def unit(vectors: npt.ArrayLike) -> Floats:
    """(n, d) rows of length 1, float32. InputError: a row is zero or no number, which has no cosine."""
    rows = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(np.isfinite(length) & (length > 0)):
        raise InputError("embeddings: a text's embedding is zero or not finite; use another embedding model")
    unit_rows: Floats = rows / length
    return unit_rows


def nearest(rows: Floats, others: Floats, block: int = BLOCK) -> tuple[Floats, Ints]:
    """Of each of (n, d) rows the highest cosine with any of (m, d) others, and which one has it.

    Both hold unit rows. Without others the cosine is -1 and the index too.
    """
    best = np.full(len(rows), -1.0, dtype=np.float32)
    index = np.full(len(rows), -1, dtype=np.int64)
    for row in range(0, len(rows), block):
        some = slice(row, row + block)
        for other in range(0, len(others), block):
            cosines = rows[some] @ others[other : other + block].T
            place = cosines.argmax(axis=1)
            value = cosines[np.arange(len(place)), place]
            better = value > best[some]
            best[some][better], index[some][better] = value[better], place[better] + other
    return best, index


class EmbeddingFile:
    """Embeddings of a fixed width on the disk, appended in order and read in blocks."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.width = 0
        self._stream = open(path, "wb")  # noqa: SIM115  closed by close()

    def append(self, vectors: npt.ArrayLike) -> None:
        """Add (n, d) rows, made unit rows."""
        rows = unit(vectors)
        if self.width not in (0, rows.shape[1]):
            raise ValueError(f"embeddings of width {rows.shape[1]} after {self.width}")
        self.width = rows.shape[1]
        self._stream.write(rows.tobytes())

    def selected(self, mask: npt.NDArray[np.bool_], size: int = BLOCK) -> Iterator[tuple[Ints, Floats]]:
        """(row numbers, rows) where the (n,) mask is True, in order, read `size` rows at a time."""
        self._stream.flush()
        start = 0
        with open(self.path, "rb") as stream:
            while data := stream.read(size * self.width * 4):
                block = np.frombuffer(data, dtype=np.float32).reshape(-1, self.width)
                wanted = np.flatnonzero(mask[start : start + len(block)])
                yield wanted + start, block[wanted]
                start += len(block)

    def close(self) -> None:
        """Remove the file."""
        self._stream.close()
        os.unlink(self.path)


def find_leaks(embeddings: EmbeddingFile, parts: Ints, threshold: float) -> tuple[Bools, Floats, Ints]:
    """Which rows must go so that no two rows of different parts have a cosine of `threshold` or above.

    Rows go from the lower part: part 0 is the training split, which loses first, and the last part is never touched. A
    row is compared with what stays of the higher parts.

    Args:
        embeddings: (n, d), one row each.
        parts: (n,) the part of each row, 0, 1, ...; all but part 0 must fit into memory.

    Returns:
        drop, the highest cosine with a row of a higher part (-1: there is none) and that row's number, (n,) each.
    """
    drop = np.zeros(len(parts), dtype=bool)
    cosine = np.full(len(parts), -1.0, dtype=np.float32)
    partner = np.full(len(parts), -1, dtype=np.int64)
    for part in range(int(parts.max(initial=0)) - 1, -1, -1):
        above = list(embeddings.selected((parts > part) & ~drop))
        numbers = np.concatenate([rows for rows, _ in above])
        others = np.concatenate([vectors for _, vectors in above])
        if not len(numbers):
            continue
        for rows, vectors in embeddings.selected(parts == part):
            cosine[rows], index = nearest(vectors, others)
            drop[rows], partner[rows] = cosine[rows] >= threshold, numbers[index]
    return drop, cosine, partner
