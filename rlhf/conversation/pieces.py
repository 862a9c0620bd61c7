"""Texts in pieces -> token ids of each piece, as it is inside its text."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pieces:
    """Tokenizes pieces of texts by themselves, without special tokens of its own.

    SentencePiece-like tokenizers put a space before any text (`anchored`): their later pieces are tokenized behind a
    line break.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        probe = ["Hello", " Hello", "[INST] Hello"]
        self._anchor = self.encode(["\n"])[0]
        behind = self.encode(["\n" + p for p in probe])
        self.anchored = self.encode(probe) != [ids[len(self._anchor) :] for ids in behind]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; equal ones are tokenized once, and share a list."""
        different = list(dict.fromkeys(texts))
        if not different:
            return []
        encoded = self.tokenizer(
            different, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        ids = dict(zip(different, cast("list[list[int]]", encoded["input_ids"]), strict=True))
        return [ids[text] for text in texts]

    def encode_within(self, pieces: list[str], starts: set[int]) -> list[list[int]]:
        """Ids of each piece as they are inside a text; `starts` are the pieces that begin one."""
        if not self.anchored:
            return self.encode(pieces)
        ids = self.encode([piece if p in starts else "\n" + piece for p, piece in enumerate(pieces)])
        size = len(self._anchor)
        return [
            row if p in starts else row[size:] if row[:size] == self._anchor else self.encode([pieces[p]])[0]
            for p, row in enumerate(ids)
        ]

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Text of the ids; `special`: special tokens are written too."""
        text = self.tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def most_characters(self, tokens: int) -> int:
        """A text of more characters than this takes more tokens than so many; a normalizer may join a few into one."""
        return 4 * tokens * self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest entry of the vocabulary."""
        return max(map(len, self.tokenizer.get_vocab()))
