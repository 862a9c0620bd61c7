"""Answers that refuse, by the phrases that they open with: for cleaning data, where a model is not to learn them.

`PHRASES` is a plain list to look at and to add to. Only an answer's beginning is read, so that an answer which mentions
what somebody can't do stays.
"""

from __future__ import annotations

import re

OPENING = 200  # characters
PHRASES = (
    "i am sorry, but",
    "i'm sorry, but",
    "i apologize, but",
    "sorry, i can't",
    "sorry, i cannot",
    "sorry, but i",
    "i cannot",
    "i can't help",
    "i can't assist",
    "i can't provide",
    "i can't answer",
    "i can't fulfil",
    "i am unable to",
    "i'm unable to",
    "i am not able to",
    "i'm not able to",
    "i will not",
    "i won't be able to",
    "i must decline",
    "i have to decline",
    "as an ai",
    "as a language model",
    "as an artificial intelligence",
    "i'm just an ai",
    "i am just an ai",
    "i'm an ai",
    "i am an ai",
    "i'm a language model",
    "it is not appropriate for me",
    "it's not appropriate for me",
    "i don't have access to",
    "i do not have access to",
    "i don't have the ability",
    "i do not have the ability",
)
_PATTERN = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, PHRASES)) + r")(?!\w)(?! but)")


def refusal_phrase(answer: str) -> str | None:
    """The first of PHRASES in the answer's opening, or None."""
    found = _PATTERN.search(" ".join(answer[:OPENING].lower().replace("’", "'").split()))
    return found[0] if found else None
