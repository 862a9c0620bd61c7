"""Posts of every form, the split by post, and articles with their questions."""

from __future__ import annotations

import json

import pytest
import zstandard

from rlhf.data.corpus.eli5 import Post, attach_comments, post_of, rows_of_post
from rlhf.data.corpus.simple_text import TextFilter, filtered_passages, filtered_posts
from rlhf.data.corpus.simple_wikipedia import Article, Passage, article_of, passages_of, question_prompt, read_question
from rlhf.data.corpus.text_filters import Answer, FilterConfig
from rlhf.data.rows import Preference, Prompt
from rlhf.errors import InputError
from rlhf.jsonl import read_rows

EASY = "The sun is a big ball of hot gas. It gives us light and heat. We need both of them to live and grow our food."
OTHER = "Rain falls when the air cools down. Warm air can hold a lot of water, but cold air can not, so it has to fall."


def texts(answers):
    return [(answer.text, answer.score) for answer in answers]


# Posts


@pytest.mark.parametrize(
    "answers",
    [
        {"a_id": ["x", "y", "z"], "text": ["one", "two", "[deleted]"], "score": [5, -1, 9]},
        [{"text": "one", "score": 5}, {"text": "two", "score": -1}, {"text": " [removed] ", "score": 0}],
        [{"body": "one", "score": 5}, {"body": "two", "score": -1}, {"body": "", "score": 1}],
    ],
)
def test_every_form_of_answers(answers):
    post = post_of({"q_id": "q1", "title": "[ELI5]: Why is it so?", "selftext": "I ask", "answers": answers}, "7")
    assert (post.id, post.question, texts(post.answers)) == ("q1", "Why is it so?\n\nI ask", [("one", 5), ("two", -1)])


@pytest.mark.parametrize(
    ("title", "question"),
    [
        ("ELI5: why?", "why?"),
        ("eli5 - why?", "why?"),
        ("(ELI5) why?", "why?"),
        ("Why does ELI5 exist?", "Why does ELI5 exist?"),
    ],
)
def test_the_tag_of_a_title_goes(title, question):
    assert post_of({"title": title, "answers": []}, "7").question == question


def test_a_row_of_dolly_is_a_question_with_one_answer_without_votes():
    row = {"instruction": "Who was he?", "context": "He was Bob.", "response": "Bob", "category": "closed_qa"}
    post = post_of(row, "7")
    assert (post.question, texts(post.answers)) == ("He was Bob.\n\nWho was he?", [("Bob", None)])
    messages = [{"role": "user", "content": post.question}, {"role": "assistant", "content": "Bob"}]
    assert rows_of_post(post) == ("sft", [{"id": "7", "messages": messages, "source": "dolly"}])
    assert post_of({"instruction": "Why?", "context": "", "response": " "}, "8") == Post("8", "Why?", [], "dolly")
    for wrong in ({"response": None}, {"context": 3, "response": "a"}):
        with pytest.raises(InputError, match="must be a text, got"):
            post_of({"instruction": "Why?", **wrong}, "9")


@pytest.mark.parametrize("gone", [{"title": "[deleted]"}, {"title": "a", "selftext": "[removed]"}])
def test_a_post_that_is_gone_has_no_question(gone):
    assert post_of({**gone, "answers": []}, "7").question == ""


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"answers": []}, "title"),
        ({"title": "a"}, "answers"),
        ({"title": "a", "answers": {"text": ["x"], "score": []}}, "1 texts but 0 scores"),
        ({"title": "a", "answers": {"text": None, "score": None}}, "text and score must be lists"),
        ({"title": "a", "answers": [{"text": "x"}]}, "score must be a number"),
        ({"title": "a", "answers": [{"score": 1}]}, "must have a text"),
    ],
)
def test_a_bad_post_is_named(row, sentence):
    with pytest.raises(InputError, match=sentence):
        post_of(row, "7")


def test_comments_of_a_dump_are_answers_where_they_answer_the_post(tmp_path):
    submissions = [(1, {"id": "a", "title": "Why?"}), (2, {"id": "b", "title": "How?"})]
    comments = [
        {"link_id": "t3_b", "parent_id": "t3_b", "body": "so", "score": 2},
        {"link_id": "t3_a", "parent_id": "t3_a", "body": "because", "score": 7},
        {"link_id": "t3_a", "parent_id": "t1_x", "body": "a reply to an answer", "score": 99},
        {"link_id": "t3_z", "parent_id": "t3_z", "body": "to another post", "score": 1},
        {"link_id": "t3_a", "parent_id": "t3_a", "body": "also", "score": 3},
    ]
    with (tmp_path / "comments.jsonl.zst").open("wb") as stream:
        packed = zstandard.ZstdCompressor().stream_writer(stream)
        packed.write("".join(json.dumps(comment) + "\n" for comment in comments).encode())
        packed.flush(zstandard.FLUSH_FRAME)
    found = attach_comments(submissions, read_rows(tmp_path / "comments.jsonl.zst"), tmp_path / "db")
    posts = [post_of(row, str(number)) for number, row in found]
    assert [texts(post.answers) for post in posts] == [[("because", 7), ("also", 3)], [("so", 2)]]
    assert not (tmp_path / "db").exists()
    with pytest.raises(InputError, match="comment 1"):
        list(attach_comments(submissions, [(1, {"body": "x"})], tmp_path / "db"))


def test_a_broken_zst_file_is_named(tmp_path):
    file = tmp_path / "posts.jsonl.zst"
    file.write_bytes(b"not packed at all")
    with pytest.raises(InputError, match=r"posts\.jsonl\.zst"):
        list(read_rows(file))


def test_the_split_by_post():
    def kind_and_rows(*answers):
        return rows_of_post(Post("p", "Why?", [Answer(text, score) for text, score in answers]))

    kind, rows = kind_and_rows(("only", 5))
    assert kind == "sft" and rows == [
        {
            "id": "p",
            "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "only"}],
            "source": "eli5",
        }
    ]
    kind, rows = kind_and_rows(("low", 4), ("high", 9), ("same", 4))
    pairs = [Preference.from_dict(row) for row in rows]
    assert kind == "preferences"
    assert [(p.id, p.chosen, p.rejected, p.strength) for p in pairs] == [
        ("p.1", "high", "low", None),
        ("p.2", "high", "same", None),
    ]
    for answers in ([], [("a", 5), ("b", 5)]):
        kind, rows = kind_and_rows(*answers)
        assert kind == "prompts" and Prompt.from_dict(rows[0]).messages[-1]["content"] == "Why?"
    assert kind_and_rows(("twice", 5), ("twice", 8))[0] == "sft"


def test_posts_through_the_filters():
    def answer(text, score=5):
        return Answer(text, score)

    posts = [
        Post("a", "Why  is the sky blue?", [answer(EASY + "\n\nEdit: ok"), answer("too short"), answer(OTHER, 3)]),
        Post("b", "", [answer(EASY)]),
        Post("c", "Is this rude?", [answer(OTHER)]),
        Post("d", "And why?", [answer(EASY + " You RUDE one."), answer(OTHER)]),
    ]
    filters = TextFilter(FilterConfig(), lambda some: [0.9 if "rude" in text.lower() else 0.0 for text in some])
    kept = list(filtered_posts(posts, filters, rows=2))
    assert [(post.id, post.question, texts(post.answers)) for post in kept] == [
        ("a", "Why is the sky blue?", [(EASY, 5)]),
        ("d", "And why?", [(OTHER, 5)]),
    ]
    steps = {(step["name"], step["unit"]): (step["in"], step["out"]) for step in filters.figures()["steps"]}
    assert steps["empty", "questions"] == (4, 3) and steps["toxicity", "questions"] == (3, 2)
    assert steps["upvotes", "answers"] == (6, 5) and steps["words", "answers"] == (5, 4)
    assert steps["toxicity", "answers"] == (3, 2)
    assert filters.figures()["histograms"]["toxicity"]["all"]["n"] == 3
    assert filters.figures()["histograms"]["words"]["kept"]["n"] == 2


def test_the_batch_changes_nothing():
    def run(size):
        posts = [Post(str(i), f"Why {i}?", [Answer(EASY, i), Answer(OTHER, 9)]) for i in range(7)]
        filters = TextFilter(FilterConfig(), lambda some: [0.0 if "sun" in text else 0.05 for text in some])
        kept = [(post.id, texts(post.answers)) for post in filtered_posts(posts, filters, size)]
        return kept, filters.figures()

    assert run(1) == run(3) == run(100)


def test_posts_are_read_a_batch_at_a_time():
    read = []

    def posts():
        for i in range(1000):
            read.append(i)
            yield Post(str(i), f"Why {i}?", [])

    kept = filtered_posts(posts(), TextFilter(FilterConfig(), None), rows=10)
    assert [next(kept).id for _ in range(15)][-1] == "14" and len(read) == 20


# Simple Wikipedia


def test_an_article_s_paragraphs_are_its_passages():
    article = article_of({"id": 12, "title": " Sun ", "text": f"{EASY}\n\nHistory\n{OTHER}"}, "7")
    assert [(p.id, p.title, p.answer.text) for p in passages_of(article)] == [
        ("12.1", "Sun", EASY),
        ("12.2", "Sun", "History"),
        ("12.3", "Sun", OTHER),
    ]
    assert passages_of(Article("1", "Sun", "All of it.\nHere.", "What?")) == [
        Passage("1", "Sun", Answer("All of it.\nHere."), "What?")
    ]


@pytest.mark.parametrize("row", [{"title": "a"}, {"text": "a"}, {"title": "a", "text": "b", "question": " "}])
def test_a_bad_article_is_refused(row):
    with pytest.raises(InputError, match="must be a"):
        article_of(row, "7")


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("What is the sun?", "What is the sun?"),
        ("Question: What is the sun made of?\nAnswer: gas", "What is the sun made of?"),
        ('Sure, here is one: "Why do we need the sun?"', "Why do we need the sun?"),
        ("1. Why is it hot there? 2. Why not?", "Why is it hot there?"),
        ("The sun is hot.", None),
        ("Why?", None),
        ("What does the paragraph say?", None),
        ("What is the answer to this question?", None),
        ("A question: How did Nathan remain one of the top closers?", "How did Nathan remain one of the top closers?"),
        ("", None),
    ],
)
def test_a_reply_s_question(reply, question):
    assert read_question(reply) == question


def test_passages_through_the_filters_with_a_model_that_asks():
    asked = []

    def ask(prompts, before):
        asked.append((before, len(prompts)))
        assert all(prompt[0]["content"].count(EASY) + prompt[0]["content"].count(OTHER) == 1 for prompt in prompts)
        return ["Nothing to ask." if OTHER in prompt[0]["content"] else "Why do we need the sun?" for prompt in prompts]

    def articles():
        yield Article("1", "Sun", f"{EASY}\n\n== See ==\n{OTHER} It is good for all that grows.")
        yield Article("2", "Short", EASY)
        yield Article("3", "Long", "\n".join([EASY] * 30))
        yield Article("4", "Star", f"{EASY}\n{EASY} It is a star as well.")

    filters = TextFilter(FilterConfig(min_article_words=40), None)
    kept = list(filtered_passages(articles(), filters, ask, rows=2))
    assert [(p.id, p.question) for p in kept] == [
        ("1.1", "Why do we need the sun?"),
        ("4.1", "Why do we need the sun?"),
        ("4.2", "Why do we need the sun?"),
    ]
    assert asked == [(0, 2), (2, 2)]
    steps = {(step["name"], step["unit"]): (step["in"], step["out"]) for step in filters.figures()["steps"]}
    assert steps["length", "articles"] == (4, 2)
    assert steps["words", "paragraphs"] == (5, 4) and ("upvotes", "paragraphs") not in steps
    assert steps["question written", "paragraphs"] == (4, 3)


def test_without_a_model_articles_must_bring_questions():
    filters = TextFilter(FilterConfig(min_article_words=10), None)
    with pytest.raises(InputError, match="question_model"):
        list(filtered_passages([Article("1", "Sun", EASY)], filters, None, 2))
    (kept,) = filtered_passages([Article("1", "Sun", EASY, "What  is it?")], filters, None, 2)
    assert kept.question == "What is it?"


def test_the_prompt_names_title_and_paragraph():
    (message,) = question_prompt(Passage("1", "Sun", Answer(EASY)))
    assert "'Sun'" in message["content"] and EASY in message["content"]
