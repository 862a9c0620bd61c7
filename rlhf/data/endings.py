"""Whether an answer was cut off in the middle of a sentence, as its text alone says. Light."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?<!\d)[.!?…؟।][\"'”’)\]*_]*\s|[。！？]")
"""A mark that ends a sentence, and not the number of a list's item."""

_GOES_ON = ",;:-–—、，؛"


def breaks_off(text: str) -> bool:
    """Whether a text that has ended a sentence before ends in the middle of one: in a letter, a digit or a comma.

    An answer of a single word or line is none that breaks off; a list whose last item has no mark may look like one.
    """
    text = text.rstrip()
    return bool(text) and (text[-1].isalnum() or text[-1] in _GOES_ON) and bool(_SENTENCE_END.search(text))


def cut_off(text: str, share: float = 2 / 3) -> str:
    """The first `share` of a text's words, without the mark that the last of them may end in."""
    words = text.split(" ")
    return " ".join(words[: max(1, int(len(words) * share))]).rstrip(" \n.!?…؟।。！？\"'”’)]*_")
