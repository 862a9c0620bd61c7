"""The instructions of IFEval and the rules that say whether an answer follows them (Zhou et al., arXiv 2311.07911).

The kinds and what each one asks are those of the published set, in code of our own. Three rules need what is no rule:
sentences are counted as in `rlhf.data.corpus.instructions`, words in capitals by a pattern, and a language is told by
`languages` in place of a trained detector; on these, single verdicts may differ from other implementations'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.data.corpus.instructions import count_units
from rlhf.evaluation.instructions.languages import is_in

Rule = Callable[..., bool]
"""(answer, the instruction's own arguments by name) -> it follows."""
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
_CAPITALS = re.compile(r"[^\W\d_](?:[\w'’.&-]*\w)?")


def holds(count: int, relation: str, number: int) -> bool:
    """Whether a count is `less than` or `at least` a number."""
    return count < number if relation == "less than" else count >= number


def keywords_exist(answer: str, keywords: Sequence[str]) -> bool:
    return all(re.search(_term(word), answer, re.IGNORECASE) for word in keywords)


def keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return holds(len(re.findall(_term(keyword), answer, re.IGNORECASE)), relation, frequency)


def forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{_term(word)}\b", answer, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return holds(answer.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(answer: str, language: str) -> bool:
    return is_in(answer, language)


def number_of_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return holds(count_units(answer, "sentences"), relation, num_sentences)


def number_of_words(answer: str, num_words: int, relation: str) -> bool:
    return holds(len(re.findall(r"\w+", answer)), relation, num_words)


def number_of_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Parted by ***; the first and the last may be empty, and do not count then."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    inner = parts[1:-1]
    return all(inner) and sum(map(bool, parts)) == num_paragraphs


def first_word_of_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Parted by an empty line."""
    paragraphs = answer.split("\n\n")
    if sum(bool(part.strip()) for part in paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    found = re.match(r"""'*"*([^.,?!'"]*)""", words[0]) if words else None
    return found is not None and found[1].lower() == first_word.lower()


def placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def postscript(answer: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    return re.search(POSTSCRIPTS.get(marker, re.escape(marker.lower())), answer.lower()) is not None


def bullet_lists(answer: str, num_bullets: int) -> bool:
    starred = re.findall(r"^\s*\*[^*].*$", answer, re.MULTILINE)
    return len(starred) + len(re.findall(r"^\s*-.*$", answer, re.MULTILINE)) == num_bullets


def constrained_response(answer: str) -> bool:
    return any(option in answer for option in CONSTRAINED)


def highlighted_sections(answer: str, num_highlights: int) -> bool:
    found = [text.strip("*") for text in re.findall(r"\*[^\n*]*\*", answer)]
    found += [text[2:-2] for text in re.findall(r"\*\*[^\n*]*\*\*", answer)]
    return sum(bool(text.strip()) for text in found) >= num_highlights


def multiple_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{_term(section_spliter)}\s?\d+", answer)) >= num_sections


def json_format(answer: str) -> bool:
    inside = re.sub(r"\A```(?:json)?|```\Z", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(inside.strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(answer: str) -> bool:
    return any(text.strip("<>").strip() for text in re.findall(r"<<[^\n]+>>", answer))


def two_responses(answer: str) -> bool:
    """Parted by ******, and different; the first and the last part may be empty."""
    parts = [part.strip() for part in answer.split("******")]
    said = [part for part in parts if part]
    return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]


def repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_phrase(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    found = [word for word in _CAPITALS.findall(answer) if word.isupper()]
    return holds(len(found), capital_relation, capital_frequency)


def english_capital(answer: str) -> bool:
    return answer.isupper() and is_in(answer, "en")


def english_lowercase(answer: str) -> bool:
    return answer.islower() and is_in(answer, "en")


def no_comma(answer: str) -> bool:
    return "," not in answer


def _term(text: str) -> str:
    """As it stands, blanks around it left out; the words of the set are no patterns."""
    return re.escape(text.strip())


RULES: Mapping[str, Rule] = {
    "keywords:existence": keywords_exist,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_of_sentences,
    "length_constraints:number_words": number_of_words,
    "length_constraints:number_paragraphs": number_of_paragraphs,
    "length_constraints:nth_paragraph_first_word": first_word_of_paragraph,
    "detectable_content:number_placeholders": placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_phrase,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
"""Id of an instruction in the published set -> its rule."""


def follows(answer: str, instruction: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an answer follows one instruction; an empty one follows none."""
    return bool(answer.strip()) and RULES[instruction](answer, **arguments)


def follows_loosely(answer: str, instruction: str, arguments: Mapping[str, Any]) -> bool:
    """The loose criterion: the same, also without the answer's asterisks, its first line, its last line, or both."""
    lines = answer.split("\n")
    parts = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return any(follows(text, instruction, arguments) for part in parts for text in (part, part.replace("*", "")))
