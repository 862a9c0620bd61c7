"""Instructions that a rule can check, read from a request: lengths, lists, letters, words to use and to leave out.

Only what a request says in plain words is found ("in at most 50 words", "without commas", "as JSON"); what is not found
is not checked: a missed instruction costs nothing, an invented one drops a good row. The kinds are of IFEval (Zhou et
al. 2023, arXiv 2311.07911), as far as people ask for them in passing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
_NUMBERS = {word: number for number, word in enumerate(_WORDS.split())} | {"a single": 1, "twenty": 20, "fifty": 50}
_N = r"(\d[\d,]*|" + "|".join(sorted(_NUMBERS, key=len, reverse=True)) + ")"
_UNITS = {
    "words": "words?",
    "sentences": "sentences?",
    "paragraphs": "paragraphs?",
    "bullet points": r"(?:bullet(?:ed)? points?|bullets?)",
}
_BOUNDS = {
    "at most": "at most|no more than|not more than|up to|(?:a )?maximum of|within|no longer than",
    "less than": "less than|fewer than|under|below",
    "at least": "at least|no fewer than|no less than|not less than|(?:a )?minimum of",
    "more than": "more than|over",
    "exactly": "exactly",
    "in": "in|in just|in only|only",
}
_BEHIND = {"at most": "or (?:less|fewer)", "at least": "or more"}
_NOT_OF_ALL = re.compile(r"\b(?:each|every|per)\b[^.]*\Z")  # before a length: it is not one of the whole answer
_NO = r"\b(?:without|no|avoid|(?:do|does|should|must|can)(?: not|n't)|cannot)(?: (?:use|using|contain|include|any))*"
_WRITE = r"\b(?:write|answer|respond|response|reply|output|poem|letters)\b[^.;:]{0,40}(?<!words )(?<!words be )\b"
_BULLET = re.compile(r"^[ \t]*(?:[-*•–]|\d+[.)])[ \t]+\S", re.MULTILINE)
_ABBREVIATION = re.compile(
    r"\b(?:vs|mr|mrs|ms|dr|st|jr|sr|prof|etc|e\.g|i\.e|(?:[a-z]\.)*[a-z])\.(?=\s)", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?:\s+|\Z)")
_TERMS = r"(?:the |any )?(?:following )?(?:key)?(?:words?|phrases?|terms?):? [\"“']([^\"“”'\n]{1,60})[\"”']"
_USE = re.compile(
    rf"(?:includ|us|mention|contain)(?:e|es|ing)? {_TERMS}(?! [^.]*\b(?:times|once|twice)\b)", re.IGNORECASE
)
_FORBIDDEN = re.compile(r"(?:\bnot|n['’]t|\bnever|\bwithout|\bavoid)(?: to)? (?:say )?\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """`kind` and `text` say what is asked; `followed` says whether an answer does it."""

    kind: str
    text: str
    followed: Callable[[str], bool]


def _is_json(answer: str) -> bool:
    try:
        json.loads(re.sub(r"\A```(?:json)?\s*|\s*```\Z", "", answer.strip()))
    except json.JSONDecodeError:
        return False
    return True


_FORMS: tuple[tuple[Instruction, re.Pattern[str]], ...] = tuple(
    (Instruction(kind, text, followed), re.compile(pattern))
    for kind, text, followed, pattern in (
        ("words", "one word", lambda a: len(a.split()) == 1, r"\b(?:one|single)[- ]word (?:answer|reply|response)\b"),
        (
            "yes or no",
            "begins with yes or no",
            lambda a: re.match(r"\W*(?:yes|no)\b", a, re.IGNORECASE) is not None,
            r"\b(?:answer|reply|respond)(?: only)?(?: with)?(?: only)?(?: a)? ['\"]?yes['\"]? or ['\"]?no\b",
        ),
        ("commas", "no commas", lambda a: "," not in a, rf"{_NO} commas?\b|\bnot allowed to use any commas\b"),
        ("JSON", "is JSON", _is_json, r"\b(?:in|as|valid|using|use) (?:a )?(?:valid )?json\b"),
        (
            "capitals",
            "all capitals",
            lambda a: a == a.upper(),
            rf"{_WRITE}(?:in all|entirely in|only in|in only|in) (?:caps|capitals|capital letters|upper ?case)\b",
        ),
        (
            "lower case",
            "all lower case",
            lambda a: a == a.lower(),
            rf"{_WRITE}(?:in all|entirely in|only in|in only|in) lower ?case\b"
            rf"|{_NO} (?:capital|capitalized|upper ?case) letters\b",
        ),
        (
            "quotation marks",
            "in quotation marks",
            lambda a: a.strip()[:1] == a.strip()[-1:] == '"',
            r"\b(?:wrap|put|enclose|surround)\b[^.\n]*\b(?:response|answer|reply)\b[^.\n]*\bdouble quot",
        ),
    )
)


def instructions_in(request: str) -> list[Instruction]:
    """Every checkable instruction that the request spells out."""
    lower = " ".join(request.lower().replace("’", "'").split())
    forms = [instruction for instruction, pattern in _FORMS if pattern.search(lower)]
    return [*_lengths(lower), *forms, *_terms(" ".join(request.split()))]


def count_units(answer: str, unit: str) -> int:
    """How many words, sentences, paragraphs or bullet points an answer has."""
    if unit == "words":
        return len(re.findall(r"\w[\w'’-]*", answer))
    if unit == "bullet points":
        return len(_BULLET.findall(answer))
    if unit == "paragraphs":
        return len([part for part in re.split(r"\n\s*\n", answer) if part.strip(" *\n")])
    plain = _ABBREVIATION.sub("", answer.strip())
    return len([part for part in _SENTENCE_END.split(plain) if re.search(r"\w", part)])


def _lengths(request: str) -> Iterator[Instruction]:
    for unit, how, pattern in _length_patterns():
        found = pattern.search(request)
        if found is None or _NOT_OF_ALL.search(request[: found.start()]):
            continue
        number = _NUMBERS[found[1]] if found[1] in _NUMBERS else int(found[1].replace(",", ""))
        yield Instruction(unit, f"{how} {number} {unit}", _counted(unit, how, number))


@cache
def _length_patterns() -> list[tuple[str, str, re.Pattern[str]]]:
    """(unit, bound, the pattern of a request for so many of that unit)."""
    found = []
    for unit, name in _UNITS.items():
        patterns = [
            (how, rf"(?<!\bno )(?<!\bnot )\b(?:{bound}) {_N} (?:very |short |markdown )*{name}")
            for how, bound in _BOUNDS.items()
        ]
        patterns += [(how, rf"\b{_N} (?:{name} {behind}|{behind} {name})") for how, behind in _BEHIND.items()]
        patterns.append(("at least", rf"\b{_N}\+ {name}"))
        found += [
            (unit, how, re.compile(rf"{pattern}\b(?! (?:or|be|in|are|with|of)\b|-)")) for how, pattern in patterns
        ]
    return found


def _counted(unit: str, how: str, number: int) -> Callable[[str], bool]:
    """ "In 100 words" means about as many: a tenth more or less, so that "in two sentences" stays exact."""

    def followed(answer: str) -> bool:
        count = count_units(answer, unit)
        return {
            "at most": count <= number,
            "less than": count < number,
            "at least": count >= number,
            "more than": count > number,
            "exactly": count == number,
            "in": abs(count - number) <= number // 10,
        }[how]

    return followed


def _terms(request: str) -> Iterator[Instruction]:
    for found in _USE.finditer(request):
        term = found[1].lower()
        if _FORBIDDEN.search(request[: found.start()]):
            whole = re.compile(rf"\b{re.escape(term)}\b")
            yield Instruction("left-out words", f"without {term!r}", lambda a, w=whole: w.search(a.lower()) is None)  # type: ignore[misc]
        else:
            yield Instruction("words to use", f"has {term!r}", lambda a, t=term: t in a.lower())  # type: ignore[misc]
