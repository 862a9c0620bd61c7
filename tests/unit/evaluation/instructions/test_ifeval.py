"""IFEval's rules one by one, the two criteria, the figures, and the published rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.instructions.ifeval import InstructedPrompt, instruction_figures, judge, read_prompts
from rlhf.evaluation.instructions.ifeval_rules import RULES, follows, follows_loosely
from rlhf.evaluation.instructions.languages import LANGUAGES, is_in
from rlhf.intervals import wilson
from rlhf.report.pages.instructions import markdown_tables

SWAHILI = "Habari za leo ni nzuri kwa watu wa kijiji na watoto wao katika shule."
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["mill", " River "]}, ["The Mill by the river."], ["The mill."]),
    (
        "keywords:frequency",
        {"keyword": "mill", "frequency": 2, "relation": "at least"},
        ["Mill and mills"],
        ["One mill."],
    ),
    ("keywords:frequency", {"keyword": "mill", "frequency": 2, "relation": "less than"}, ["One mill."], ["mill, mill"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "sand"]}, ["The rocky mill."], ["A Rock."]),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "at least"},
        ["Oh! Yes!"],
        ["Oh!"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_frequency": 1, "let_relation": "less than"},
        ["A mill"],
        ["The mill"],
    ),
    ("language:response_language", {"language": "sw"}, [SWAHILI], ["The mill is by the river.", "Habari!"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["It stands, e.g. here. It turns!"],
        ["It stands, e.g. here."],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["A mill."], ["A mill, here."]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none *** two\n***"],
        ["one\n\ntwo", "one *** *** two", "a *** b *** c"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
        ['Trees.\n\n"Elm," he said.', "Trees.\n\nelm's\n\n "],
        ["Elm.\n\nTrees.", "a\n\nelms b", "a\n\nelm\n\nb", "elm"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name], [the day]"], ["[name]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye.\nP. S. More."], ["Bye. PS More."]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye.\np.p.s more"], ["Bye.\nP.S. more"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* one\n  - two"], ["* one", "**one**\n* two"]),
    ("detectable_format:constrained_response", {}, [" My answer is maybe. "], ["Maybe."]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** and *two*"],
        ["*one* and * *", "one"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na\nSECTION\nb", "Section 1 Section 2"],
    ),
    ("detectable_format:json_format", {}, ['```json\n{"a": [1]}\n```', "3"], ["{a: 1}", 'Here: {"a": 1}']),
    ("detectable_format:title", {}, ["<<The mill>>\nIt turns."], ["<The mill>", "<<  >>"]),
    (
        "combination:two_responses",
        {},
        ["One.\n******\nTwo.", "******\nOne.\n******\nTwo."],
        ["One.", "One.******One.", "a******b******c", "a************b"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a line."}, [" write a line. So: one."], ["So: one."]),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, ['"Yes. is that all?"\n'], ["Is that all? Yes."]),
    ("startend:quotation", {}, [' "Yes." '], ['"Yes.', '"', "Yes."]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["I saw NASA.", "WELL-MADE, A1"],
        ["I saw it."],
    ),
    ("change_case:english_capital", {}, ["THE MILL IS BY THE RIVER."], ["THE MILl.", "DE LA QUE EL EN LOS MOLINOS"]),
    ("change_case:english_lowercase", {}, ["the mill is by the river."], ["The mill.", "123"]),
    ("punctuation:no_comma", {}, ["A mill; a river."], ["A mill, a river."]),
]


@pytest.mark.parametrize(
    ("name", "arguments", "good", "bad"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_rule(name: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert [answer for answer in good if not follows(answer, name, arguments)] == []
    assert [answer for answer in bad if follows(answer, name, arguments)] == []
    assert not follows(" \n", name, arguments), "an empty answer follows nothing"


def test_every_rule_is_tested() -> None:
    assert {name for name, *_ in CASES} == set(RULES)


def test_the_loose_criterion_looks_past_what_stands_around_an_answer() -> None:
    answer = 'Sure, here it is:\n**{"a": 1}**\nDo you need more?'
    assert not follows(answer, "detectable_format:json_format", {})
    assert follows_loosely(answer, "detectable_format:json_format", {})
    assert not follows_loosely("Sure:\n{a}\nMore?", "detectable_format:json_format", {})


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ru", "Это мельница у реки, и она не работает."),
        ("bg", "Това е мелницата на реката и тя не се върти."),
        ("fa", "این آسیاب در کنار رودخانه است و از سنگ."),
        ("ar", "هذا هو المطحنة على النهر التي لا تدور في الليل."),
        ("mr", "ही गिरणी नदीकाठी आहे आणि ती जुनी आहे."),
        ("hi", "यह चक्की नदी के किनारे है और पुरानी है।"),
        ("vi", "Đây là một cái cối xay của làng và không có nước."),
        ("ko", "이것은 강가의 방앗간입니다."),
        ("ja", "これは川のそばの水車小屋です。"),
        ("kn", "ಇದು ನದಿಯ ಬಳಿಯ ಗಿರಣಿ."),
        ("de", "Das ist die Mühle, und sie steht nicht an einem Fluss."),
        ("en", "OK"),
    ],
)
def test_a_language_is_told_from_its_neighbours(language: str, text: str) -> None:
    assert [one for one in LANGUAGES if is_in(text, one)] == [language]
    assert is_in("123!", language), "no letter is of no language"


def prompt(name: str, *instructions: str) -> InstructedPrompt:
    return InstructedPrompt(name, "Write.", tuple((one, {}) for one in instructions))


def test_the_four_figures_by_hand() -> None:
    prompts = [prompt("a", "punctuation:no_comma", "startend:quotation"), prompt("b", "punctuation:no_comma")]
    verdicts = [judge(prompts[0], '*"Yes."*'), judge(prompts[1], "Yes, it is.")]
    found = instruction_figures("v1", prompts, verdicts)
    assert found["prompt_strict"] == {"n": 2, "share": 0.0, "ci": wilson(0.0, 2).ci}
    assert found["prompt_loose"]["share"] == 0.5, "without the asterisks it is in quotation marks"
    assert found["instruction_strict"] == {"n": 3, "share": 1 / 3, "ci": wilson(1 / 3, 2).ci}, "over the prompts"
    assert found["instruction_loose"]["share"] == 2 / 3
    assert found["by_instruction"]["punctuation:no_comma"]["share"] == 0.5
    printed = markdown_tables(found).replace("\u00a0", " ")
    assert "| V1 | 0.0 % (0.0 to 65.8) |" in printed and "| startend:quotation | 1 | 0.0 %" in printed


def test_the_published_rows_are_read(shared_data: Path) -> None:
    prompts = read_prompts(str(shared_data / "ifeval" / "input_data_270.jsonl"))
    assert len(prompts) == 270
    assert {name for one in prompts for name, _ in one.instructions} == set(RULES)
    for one in prompts:
        judge(one, "The mill stands by the river. It turns.")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": " "}', "prompt: must be a text"),
        ('{"prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "as long as each other"),
        ('{"prompt": "a", "instruction_id_list": ["x:y"], "kwargs": [{}]}', "there is no rule for 'x:y'"),
        (
            '{"prompt": "a", "instruction_id_list": ["startend:end_checker"], "kwargs": [{"b": 1}]}',
            "startend:end_checker takes end_phrase, got b",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, words: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{row}\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl:1: .*{words}") as caught:
        read_prompts(str(file))
    assert "\n" not in str(caught.value)
