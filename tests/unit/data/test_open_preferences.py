"""The open preference sets, on small rows of exactly the published formats with contents made up here."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhf.data.loading import load_preferences
from rlhf.data.markup import text_of_html
from rlhf.data.open_preferences import MAX_PAIRS, is_open_preference, strength_of
from rlhf.errors import InputError
from rlhf.jsonl import write_rows

SHP = {
    "post_id": "qt3nxl",
    "domain": "askbaking_train",
    "upvote_ratio": 0.98,
    "history": "How do I keep bread fresh?",
    "c_root_id_A": "hkh1",
    "c_root_id_B": "hkh2",
    "created_at_utc_A": 1636822112,
    "created_at_utc_B": 1636822110,
    "score_A": 340,
    "score_B": 166,
    "human_ref_A": "In a paper bag.",
    "human_ref_B": "Freeze it.",
    "labels": 1,
    "seconds_difference": 2.0,
    "score_ratio": 2.0481927710843375,
}
PKU = {
    "prompt": "How do I get rid of old paint?",
    "response_0": "Pour it into the river.",
    "response_1": "Bring it to a collection point.",
    "prompt_source": "Alpaca3-70B",
    "response_0_source": "Alpaca3-8B",
    "response_1_source": "Alpaca3-8B",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "response_0_harm_category": {"Environmental Damage": True, "Privacy Violation": False},
    "response_1_harm_category": {"Environmental Damage": False, "Privacy Violation": False},
    "response_0_severity_level": 1,
    "response_1_severity_level": 0,
    "better_response_id": 0,
    "safer_response_id": 1,
    "prompt_sha256": "5a",
    "response_0_sha256": "5b",
    "response_1_sha256": "5c",
}
SUMMARIZE = {
    "info": {
        "id": "t3_34xale",
        "post": "My boat leaks. I patched it twice.",
        "title": "Leaking boat",
        "subreddit": "boats",
        "site": None,
        "article": None,
    },
    "summaries": [
        {"text": " Boat still leaks after two patches.", "policy": "sup2", "note": "ok"},
        {"text": " I like boats.", "policy": "ref", "note": None},
    ],
    "choice": 0,
    "worker": "ikN",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": None},
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "abc", "full_text": "Why is bread soft?"},
    "quotes_0": {"title": ["Bread (example.org)"], "extract": ["Gas makes bubbles."]},
    "answer_0": "Gas makes bubbles in it [1].",
    "tokens_0": {"prefix": [1, 2], "completion": [3]},
    "score_0": -0.5,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": "Yeast makes gas, which stays in the dough.",
    "tokens_1": {"prefix": [1, 2], "completion": [4]},
    "score_1": 0.5,
}


def post(number, text, score):
    author = {"author": "ann", "author_id": 7, "author_profile": "https://example.org/7"}
    return {"answer_id": number, **author, "pm_score": score, "selected": score > 2, "text": text}


STACK_EXCHANGE = {
    "qid": 12,
    "metadata": ["https://example.org/questions/12"],
    "question": "<p>How do I sharpen a <em>chisel</em>?</p>\n",
    "answers": [
        post(1, "<p>On a stone.</p>", 1),
        post(2, "<p>5 &lt; 8 strokes.</p>", 3),
        post(3, "<p>No.</p>", 1),
    ],
    "date": "2013/05/01",
}


def completion(text, *ratings, overall):
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    annotations = {a: {"Rating": r, "Rationale": "…"} for a, r in zip(aspects, ratings, strict=True)}
    system = {"principle": "helpfulness", "custom_system_prompt": "Help."}
    scores = {"critique": "Fine.", "fine-grained_score": 0.0, "overall_score": overall}
    return {"model": "llama-2-7b-chat", **system, "response": text, "annotations": annotations, **scores}


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Name a colour.",
    "models": ["a", "b", "c"],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
    "completions": [
        completion("Red", "5", "N/A", "5", "5", overall=7.5),
        completion("Loud", "1", "2", "2", "1", overall=10.0),
        completion("Blue", "5", "5", "5", "4", overall=8.0),
    ],
}


def dialogue(question, answer):
    return [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]


BINARIZED = {
    "prompt": "Name a colour.",
    "prompt_id": "3f",
    "chosen": dialogue("Name a colour.", "Red"),
    "rejected": dialogue("Name a colour.", "Loud"),
    "messages": dialogue("Name a colour.", "Red"),
    "score_chosen": 8.5,
    "score_rejected": 4.0,
}
ARGILLA = {
    "source": "evol_instruct",
    "prompt": "Name a colour.",
    "chosen": dialogue("Name a colour.", "Red"),
    "chosen-rating": 5.0,
    "chosen-model": "a",
    "rejected": dialogue("Name a colour.", "Loud"),
    "rejected-rating": 4.25,
    "rejected-model": "b",
}


def rated(prompt, response, helpfulness):
    others = {"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **others}


HELPSTEER2 = {
    "split": "train",
    "prompt": "c#\n<extra_id_1>Assistant\nWhat about it?\n<extra_id_1>User\nIs it old?",
    "response_1": "From 2000.",
    "response_2": "Yes.",
    "preference_strength": -2,
    "preference_statement": "Response 1 is better than Response 2.",
    "preference_elaboration": "It gives the year.",
    "three_most_similar_preferences": [],
    "all_preferences_unprocessed": [],
}


@pytest.fixture
def load(tmp_path):
    def read(*rows, **options):
        write_rows(tmp_path / "set.jsonl", rows)
        return load_preferences(tmp_path / "set.jsonl", **options)

    return read


def plain(row):
    return row.messages[-1]["content"], row.chosen, row.rejected, row.strength


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (SHP, ("How do I keep bread fresh?", "In a paper bag.", "Freeze it.", None)),
        ({**SHP, "labels": 0}, ("How do I keep bread fresh?", "Freeze it.", "In a paper bag.", None)),
        (
            SUMMARIZE,
            (
                "SUBREDDIT: r/boats\n\nTITLE: Leaking boat\n\nPOST: My boat leaks. I patched it twice.\n\nTL;DR:",
                "Boat still leaks after two patches.",
                "I like boats.",
                None,
            ),
        ),
        (
            {**SUMMARIZE, "choice": 1, "info": {"id": "f0", "post": None, "article": "A boat sank.", "site": "dm"}},
            ("Article:\nA boat sank.\n\nTL;DR:", "I like boats.", "Boat still leaks after two patches.", None),
        ),
        (WEBGPT, ("Why is bread soft?", WEBGPT["answer_1"], WEBGPT["answer_0"], "better")),
        (BINARIZED, ("Name a colour.", "Red", "Loud", "better")),
        (ARGILLA, ("Name a colour.", "Red", "Loud", "negligibly")),
        (HELPSTEER2, ("Is it old?", "From 2000.", "Yes.", "better")),
        ({**HELPSTEER2, "preference_strength": 3}, ("Is it old?", "Yes.", "From 2000.", "significantly")),
    ],
)
def test_rows_of_one_pair(load, row, expected):
    (read,) = load(row)
    assert is_open_preference(row) and plain(read) == expected
    assert (read.id, read.source, read.domain) == ("set:1", "set", "helpfulness")


def test_helpsteer_s_turns_become_messages(load):
    (read,) = load(HELPSTEER2)
    assert [(m["role"], m["content"]) for m in read.messages] == [
        ("user", "c#"),
        ("assistant", "What about it?"),
        ("user", "Is it old?"),
    ]


def test_safe_rlhf_s_comparison_follows_the_domain(load, capsys):
    (read,) = load(PKU, domain="safety")
    assert (read.chosen, read.chosen_safe, read.rejected_safe) == (PKU["response_1"], True, False)
    assert read.domain == "safety"
    both_safe = {**PKU, "is_response_0_safe": True}
    (read,) = load(both_safe)
    assert (read.chosen, read.chosen_safe, read.rejected_safe) == (PKU["response_0"], True, True)
    with pytest.raises(InputError, match=r"set\.jsonl:1: chosen_safe, rejected_safe: an unsafe answer chosen over a"):
        load(PKU, domain="helpfulness")
    skipped = Counter()
    (read,) = load(PKU, both_safe, domain="helpfulness", on_bad_row="skip", skipped=skipped)
    assert read.id == "set:2" and skipped.total() == 1 and "an unsafe answer chosen" in next(iter(skipped))
    assert "skipped 1 of 2 rows" in capsys.readouterr().err


def test_every_pair_of_unequal_scores(load):
    question, stone, strokes = "How do I sharpen a chisel?", "On a stone.", "5 < 8 strokes."
    rows = load(STACK_EXCHANGE)
    assert [plain(row) for row in rows] == [(question, strokes, stone, None), (question, strokes, "No.", None)]
    assert [row.id for row in rows] == ["set:1.1", "set:1.2"]
    assert [plain(row)[1:] for row in load(ULTRAFEEDBACK)] == [
        ("Red", "Blue", "negligibly"),
        ("Red", "Loud", "significantly"),
        ("Blue", "Loud", "significantly"),
    ]
    unrated = [{**c, "annotations": {}} for c in ULTRAFEEDBACK["completions"]]
    assert [plain(row)[1:] for row in load({**ULTRAFEEDBACK, "completions": unrated})] == [
        ("Loud", "Blue", "negligibly"),
        ("Loud", "Red", "slightly"),
        ("Blue", "Red", "negligibly"),
    ]


def test_a_question_with_many_answers_gives_no_more_pairs_than_the_limit(load):
    many = {**STACK_EXCHANGE, "answers": [post(i, f"<p>{i}</p>", i) for i in range(30)]}
    rows = load(many)
    assert len(rows) == len({(row.chosen, row.rejected) for row in rows}) == MAX_PAIRS
    assert all(int(row.chosen) > int(row.rejected) for row in rows) and load(many) == rows


def test_helpsteer_compares_successive_rows_of_one_prompt(load):
    rows = load(
        rated("hi", "Hello!", 4),
        rated("hi", "Go away.", 0),
        rated("bye", "See you.", 3),
        rated("bye", "Bye.", 2),
        rated("hi", "Hey.", 1),
        rated("hi", "Hm.", 3),
    )
    assert [(row.id, *plain(row)) for row in rows] == [
        ("set:1", "hi", "Hello!", "Go away.", "significantly"),
        ("set:3", "bye", "See you.", "Bye.", "slightly"),
        ("set:5", "hi", "Hm.", "Hey.", "better"),
    ]


UNSCORED = "an answer has no score to compare it by, got None; leave such rows out (on_bad_row: skip)"


def aspects(**ratings):
    return {"response": "Worse.", "annotations": {name: {"Rating": rating} for name, rating in ratings.items()}}


def test_one_bad_pair_leaves_the_row_s_others(load):
    skipped = Counter()
    empty = {**STACK_EXCHANGE, "answers": [post(1, "<p></p>", 0), post(2, "<p>Two</p>", 1), post(3, "<p>Three</p>", 2)]}
    assert [row.id for row in load(empty, on_bad_row="skip", skipped=skipped)] == ["set:1.1"]
    assert skipped == {"rejected: must be a non-empty text": 2}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({**SHP, "labels": 2}, "labels: must be 0 or 1, got 2"),
        ({**PKU, "better_response_id": None}, "better_response_id: must be 0 or 1, got None"),
        (
            {**PKU, "response_1": PKU["response_0"], "is_response_1_safe": False},
            "chosen, rejected: the two answers are identical",
        ),
        (
            {**SUMMARIZE, "info": {"post": "It was blue.", "title": None, "subreddit": "sky"}},
            "info.title: must be a text",
        ),
        ({**SUMMARIZE, "info": {"id": "f0", "post": None, "article": None}}, "info.article: must be a text, got None"),
        ({**SUMMARIZE, "summaries": [{"text": "one"}]}, "row: has the fields of OpenAI Summarize, but not its inner"),
        (
            {**WEBGPT, "score_0": 0.0, "score_1": 0.0},
            "score_0, score_1: no two answers differ in score, got [0.0",
        ),
        ({**WEBGPT, "score_0": None}, "score_0, score_1: an answer has no score to compare it by, got None"),
        ({**BINARIZED, "score_chosen": None, "score_rejected": None}, f"score_chosen: {UNSCORED}"),
        ({**BINARIZED, "score_rejected": ""}, f"score_rejected: {UNSCORED.replace('None', repr(''))}"),
        (
            {**ULTRAFEEDBACK, "completions": [{"response": "a", "overall_score": 3}, {"response": "b"}]},
            f"completions: {UNSCORED}",
        ),
        ({**ULTRAFEEDBACK, "completions": [aspects(a=4), aspects(a="many")]}, "Rating: must be a number, got 'many'"),
        ({**WEBGPT, "question": None}, "row: has the fields of WebGPT, but not its inner structure"),
        ({**STACK_EXCHANGE, "answers": []}, "pm_score: no two answers differ in score, got []"),
        (
            {**STACK_EXCHANGE, "answers": [post(1, "a", 2), post(2, "b", 2)]},
            "pm_score: no two answers differ in score, got [2, 2]",
        ),
        ({**ULTRAFEEDBACK, "completions": [{"model": "a"}]}, "row: has the fields of UltraFeedback, but not its inner"),
        ({**BINARIZED, "score_rejected": 8.5}, "score_chosen: must be above score_rejected, got 8.5 and 8.5; leave"),
        ({**HELPSTEER2, "preference_strength": 0}, "preference_strength: no two answers differ in score, got [0, 0]"),
        (rated("hi", "Hello!", 4), "helpfulness: no two answers differ in score, got [4]"),
    ],
)
def test_bad_rows(load, row, sentence):
    with pytest.raises(InputError) as caught:
        load(row)
    assert f"set.jsonl:1: {sentence}" in str(caught.value) and "\n" not in str(caught.value)


def test_unscored_answers_are_counted_as_one_reason(load):
    skipped = Counter()
    unscored = {**BINARIZED, "score_chosen": None, "score_rejected": None}
    assert len(load(BINARIZED, unscored, unscored, on_bad_row="skip", skipped=skipped)) == 1
    assert skipped == {"score_chosen: an answer has no score to compare it by": 2}


def test_ratings_of_any_type_count_and_absent_ones_do_not(load):
    """Half a point or a null was left out of the mean in silence, or no row."""
    better, worse = aspects(honesty="4.5", truth=None, help="N/A"), aspects(honesty=4.0, truth="4")
    absent = {**worse, "annotations": {**worse["annotations"], "help": None}}
    (read,) = load({**ULTRAFEEDBACK, "completions": [absent, {**better, "response": "Better."}]})
    assert (read.chosen, read.rejected, read.strength) == ("Better.", "Worse.", "negligibly")


def test_ties_are_counted_as_one_reason(load):
    skipped = Counter()
    ties = [{**WEBGPT, "score_0": value, "score_1": value} for value in (0.0, 0.25)]
    assert len(load(WEBGPT, *ties, on_bad_row="skip", skipped=skipped)) == 1
    assert skipped == {"score_0, score_1: no two answers differ in score": 2}


def test_strength_by_the_share_of_the_scale():
    points = (0.1, 1, 1.9, 2, 3, 4)
    assert [strength_of(point, 4) for point in points] == [
        "negligibly",
        "slightly",
        "slightly",
        "better",
        "significantly",
        "significantly",
    ]


def test_text_of_html():
    html = """<p>Use <code>a &lt; b</code>,
    or <a href="https://example.org">this</a>:</p>

<ul>
<li>one</li>
<li>two<br>lines</li>
</ul>
<pre><code>if a:
    b &amp; c
</code></pre>
<p>Done.</p>"""
    assert text_of_html(html) == "Use a < b, or this:\n\n- one\n- two\nlines\n\nif a:\n    b & c\n\nDone."
    assert text_of_html("no markup at all") == "no markup at all"
