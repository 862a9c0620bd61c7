"""Texts that say the same: letter for letter but for case, white space and punctuation, or nearly so (MinHash)."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

SHINGLE = 3  # words
BANDS, ROWS = 20, 5  # at a Jaccard similarity of 0.8 a pair is found with probability 1 - (1 - 0.8^5)^20 > 0.999
COMPARED = 64  # of the earlier texts in a bucket, at most
_PRIME = np.uint64((1 << 31) - 1)
_PART = 4096  # shingles at once: what is computed of them stays in the processor's cache

Signature = npt.NDArray[np.uint32]


def plain_words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def exact_key(text: str) -> bytes:
    """Equal for texts of the same words; 16 bytes."""
    return hashlib.blake2b(" ".join(plain_words(text)).encode(), digest_size=16).digest()


def signature(text: str) -> Signature:
    """The text's MinHash: (BANDS * ROWS,) minima of random hashes over its shingles of SHINGLE words.

    The share of equal entries of two signatures estimates the Jaccard similarity of the two sets of shingles, with a
    standard error of at most 0.05 (Broder 1997).
    """
    words = plain_words(text)
    shingles = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
    hashes = np.array([zlib.crc32(shingle.encode()) for shingle in shingles], dtype=np.uint64) % _PRIME
    least = np.full(BANDS * ROWS, _PRIME, dtype=np.uint64)
    for part in np.array_split(hashes, range(_PART, len(hashes), _PART)):
        np.minimum(least, _mixed(part).min(axis=1), out=least)
    return least.astype(np.uint32)


def _mixed(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """(BANDS * ROWS, n): factor * hash + offset modulo the prime 2^31 - 1, whose remainder needs no division."""
    product = _FACTORS[:, None] * hashes[None, :] + _OFFSETS[:, None]  # below 2^62
    folded = (product & _PRIME) + (product >> 31)  # below 2^32
    remainder: npt.NDArray[np.uint64] = np.minimum(folded, folded - _PRIME)  # what falls below 0 becomes huge
    return remainder


class Signatures:
    """Signatures of one text after the other, 4 bytes an entry."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, text: str) -> None:
        """Append the signature of the next text."""
        self._bytes += signature(text).tobytes()

    def matrix(self) -> Signature:
        """(n, BANDS * ROWS) of all so far."""
        return np.frombuffer(self._bytes, dtype=np.uint32).reshape(-1, BANDS * ROWS)


def near_duplicates(texts: Signature, *others: Signature, threshold: float) -> dict[int, int]:
    """Of each row that is nearly an earlier, kept one: the number of that one.

    Args:
        texts: (n, BANDS * ROWS) signatures of the rows' texts.
        others: of the same rows' other texts, which must be alike too.
        threshold: the estimated similarity from which on two texts are nearly the same.
    """
    earlier: dict[int, set[int]] = {}
    for band in range(BANDS):
        _, bucket = np.unique(texts[:, band * ROWS : (band + 1) * ROWS], axis=0, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(bucket[order])) + 1):
            for place in range(1, len(members)):
                before = members[max(0, place - COMPARED) : place]
                for matrix in (texts, *others):
                    before = before[(matrix[before] == matrix[members[place]]).mean(axis=1) >= threshold]
                if len(before):
                    earlier.setdefault(int(members[place]), set()).update(before.tolist())
    duplicates: dict[int, int] = {}
    for number in sorted(earlier):
        kept = [other for other in sorted(earlier[number]) if other not in duplicates]
        if kept:
            duplicates[number] = kept[0]
    return duplicates


def _constants(count: int) -> Iterable[npt.NDArray[np.uint64]]:
    generator = np.random.default_rng(0)
    return (generator.integers(low, _PRIME, count, dtype=np.uint64) for low in (1, 0))


_FACTORS, _OFFSETS = _constants(BANDS * ROWS)
