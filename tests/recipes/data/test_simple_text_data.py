"""simple_text_data.py on small files with tiny models: the rows it writes, its figures and its page."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rlhf.configuration import parse_config
from rlhf.data.loading import load_conversations, load_preferences, load_prompts
from rlhf.errors import InputError
from rlhf.jsonl import read_rows, write_rows
from rlhf.sampling.protocol import Sample

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes/data"))
import simple_text_data
from simple_text_data import SimpleTextDataConfig, build

ROOT = Path(__file__).resolve().parents[3]

SOURCES = ("dolly", "simple_wikipedia")
EASY = "The {0} is a big thing and it is hot. It gives us light and heat. We need the {0} to live and to grow our food."


def posts(count: int = 60) -> list[dict]:
    """One answer, two of different score, two of equal score, in turn; <script> in some that are dropped."""
    rows = []
    for i in range(count):
        good = {"text": EASY.format(f"sun {i}"), "score": 5}
        second = {"text": EASY.format(f"moon {i}"), "score": 5 + i % 3}
        bad = {"text": f"<script>alert({i})</script> x < {i} short", "score": 9}
        answers = [good, bad] if i % 3 == 0 else [good, second]
        rows.append({"id": f"p{i}", "title": f"ELI5: what is thing number {i}?", "answers": answers})
        if i % 3 == 2:
            answers[1]["score"] = 5
    return rows


def articles() -> list[dict]:
    return [
        {"id": str(i), "title": f"Town {i}", "text": "\n\n".join(EASY.format(f"town {i} {j}") for j in range(3))}
        for i in range(20)
    ]


def config(tmp_path: Path, **options: object) -> SimpleTextDataConfig:
    write_rows(tmp_path / "posts.jsonl.gz", posts())
    write_rows(tmp_path / "articles.jsonl", articles())
    given = {
        "output": tmp_path / "data",
        "eli5": tmp_path / "posts.jsonl.gz",
        "validation_share": 0.2,
        "test_share": 0.2,
        **options,
    }
    return parse_config(SimpleTextDataConfig, [part for k, v in given.items() for part in (f"--{k}", str(v))])


@pytest.fixture
def question_model(tiny_policy_path: Path, tmp_path: Path) -> Path:
    """The tiny policy with room for a paragraph and the instruction."""
    folder = shutil.copytree(tiny_policy_path, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 1024}))
    return folder


def figures(folder: Path) -> dict:
    return json.loads((folder / "data.json").read_text(encoding="utf-8"))


def test_posts_become_rows_that_our_loaders_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simple_text_data.main(config(tmp_path))
    folder = tmp_path / "data"
    counts = figures(folder)["rows"]
    assert {kind: sum(of.values()) for kind, of in counts.items()} == {"sft": 20, "preferences": 20, "prompts": 20}
    titles: dict[str, set[str]] = {}
    for part in ("train", "validation", "test"):
        dialogues = load_conversations(folder / f"sft_{part}.jsonl")
        pairs = load_preferences(folder / f"preferences_{part}.jsonl")
        prompts = load_prompts(folder / f"prompts_{part}.jsonl")
        assert [len(rows) for rows in (dialogues, pairs, prompts)] == [counts[k][part] for k in counts]
        assert all(row.chosen.startswith("The moon") and row.source == "eli5" for row in pairs)
        messages = [*dialogues, *(row.messages for row in pairs), *(row.messages for row in prompts)]
        titles[part] = {m[0]["content"] for m in messages}
    assert all(title.startswith("what is thing") for title in set.union(*titles.values()))
    assert sum(map(len, titles.values())) == len(set.union(*titles.values())) == 60
    assert "20 SFT dialogues" in capsys.readouterr().out


def test_the_page_is_whole_and_escaped(tmp_path: Path) -> None:
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.seen: list[str] = []

        def handle_starttag(self, tag: str, attributes: object) -> None:
            self.seen.append(tag)

    simple_text_data.main(config(tmp_path))
    page = (tmp_path / "data" / "index.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen and "&lt;script&gt;alert(" in page
    assert tags.seen.count("svg") == 4, "words, reading ease, grade, upvotes"
    assert "words &gt;= 20" in page and "leakage was not looked for" in page
    assert "cosine of None" not in page


def test_what_is_held_out_has_no_near_copy_in_train(tmp_path: Path) -> None:
    """Embeddings at random angles: after the recipe no two of different parts are closer than the threshold."""
    rng = np.random.default_rng(0)
    vectors = {row["title"].removeprefix("ELI5: "): rng.normal(size=3) for row in posts()}
    (tmp_path / "out").mkdir()
    found = build(
        config(tmp_path, **{"filters.max_similarity": 0.9}),
        tmp_path / "out",
        None,
        lambda questions: [vectors[question] for question in questions],
        None,
    )
    parts = found["leakage"]["parts"]
    assert parts["train"]["out"] < parts["train"]["in"] and parts["test"]["out"] == parts["test"]["in"]
    kept: dict[str, list] = {}
    for part in parts:
        questions = set()
        for file in (tmp_path / "out").glob(f"*_{part}.jsonl"):
            questions |= {row["messages"][0]["content"] for _, row in read_rows(file)}
        assert len(questions) == parts[part]["out"]
        kept[part] = [vectors[q] / np.linalg.norm(vectors[q]) for q in questions]
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert (np.array(kept[one]) @ np.array(kept[other]).T).max() < 0.9
    assert not list((tmp_path / "out").glob("*.partial"))


def test_questions_by_a_model_here_and_by_a_server(
    tmp_path: Path, question_model: Path, chat_server, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"articles": tmp_path / "articles.jsonl", "question_model": question_model, "sampling.max_new_tokens": 8}
    simple_text_data.main(config(tmp_path, **options))
    steps = {s["name"]: s for s in figures(tmp_path / "data")["sources"]["simple_wikipedia"]["steps"]}
    assert steps["question written"]["in"] == 60, "a random model writes no question, but it was asked"

    def reply(body):
        answers = chat_server.answers(body)
        answers["choices"][0]["message"]["content"] = "Question: What is it that gives us light and heat?"
        return 200, answers

    chat_server.reply = reply
    options |= {"question_model.server.url": chat_server.url, "question_model.server.model": "tiny"}
    options |= {"output": tmp_path / "served"}
    options["sampling.max_new_tokens"] = 64  # an answer over it is cut off, and no question
    simple_text_data.main(config(tmp_path, **options))
    served = [row for file in (tmp_path / "served").glob("sft_*.jsonl") for _, row in read_rows(file)]
    written = [row for row in served if row["source"] == "simple_wikipedia"]
    assert len(written) == 60
    assert {row["messages"][0]["content"] for row in written} == {"What is it that gives us light and heat?"}
    by_article: dict[str, set[str]] = {}
    for file in (tmp_path / "served").glob("sft_*.jsonl"):
        for _, row in read_rows(file):
            by_article.setdefault(row["id"].split(".")[0], set()).add(file.name)
    assert all(len(files) == 1 for files in by_article.values()), "an article's passages stay together"


def test_written_questions_outlive_a_kill(
    tmp_path: Path, question_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    class Writer:
        """Each prompt's own question; the attempt ends where there are to be more than 25."""

        def sample(self, prompts, num_samples, params, keys):
            if len(asked) + len(prompts) > most:
                raise KeyboardInterrupt
            asked.extend(prompt[-1]["content"] for prompt in prompts)
            texts = [f"Question: What is it that gives us light in place {key}?" for key in keys]
            return [[Sample(text, (1,), -1.0, finished=True)] for text in texts]

    monkeypatch.setattr(simple_text_data, "open_sampler", lambda *given, **options: Writer())
    options = {"articles": tmp_path / "articles.jsonl", "question_model": question_model, "rows": 10}
    most = 25
    with pytest.raises(KeyboardInterrupt):
        simple_text_data.main(config(tmp_path, **options))
    assert len(asked) == 20
    with pytest.raises(InputError, match=r"filters\.max_grade"):
        simple_text_data.main(config(tmp_path, **options, **{"filters.max_grade": 5}))
    most = 60
    simple_text_data.main(config(tmp_path, **options))
    assert len(asked) == len(set(asked)) == 60, "none is asked about twice"
    asked.clear()
    simple_text_data.main(config(tmp_path, **options, output=tmp_path / "unbroken"))
    for file in (tmp_path / "unbroken").glob("*.jsonl"):
        assert file.read_bytes() == (tmp_path / "data" / file.name).read_bytes()
    assert not (tmp_path / "data" / "samples").exists()


def test_questions_about_another_set_of_the_hub_are_not_taken_over(
    tmp_path: Path, question_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name on the hub has no content here that could be compared: the name itself decides."""

    class Writer:
        def sample(self, prompts, num_samples, params, keys):
            if 0 not in keys:
                raise KeyboardInterrupt
            return [[Sample("Question: What is it?", (1,), -1.0, finished=True)] for _ in keys]

    monkeypatch.setattr(simple_text_data, "open_sampler", lambda *given, **options: Writer())
    monkeypatch.setattr(simple_text_data, "source_rows", lambda source: enumerate(articles(), start=1))
    options = {"eli5": "null", "question_model": question_model, "rows": 10}
    with pytest.raises(KeyboardInterrupt):
        simple_text_data.main(config(tmp_path, articles="org/one", **options))
    with pytest.raises(InputError, match=r"articles: .* were made with org/one, now it is org/two"):
        simple_text_data.main(config(tmp_path, articles="org/two", **options))


def test_dolly_s_rows_and_lines_of_wikitext(tmp_path: Path, question_model: Path, chat_server) -> None:
    """The answers to questions and the readable paragraphs, a stretch of the file in one part."""
    easy = "The {0} is a big thing , and it is hot . It gives us light . We need the {0} to grow all of our food ."
    (tmp_path / "lines.txt").write_text(
        "".join(f" = Town {i} = \n\n {easy.format(f'town {i} {j}')} \n" * 2 for i in range(20) for j in range(2))
        + " Notwithstanding considerable interdisciplinary institutionalisation , organisations deteriorated . \n"
    )
    rows = [{"instruction": f"Why {i}?", "context": "", "response": EASY.format(f"sun {i}")} for i in range(20)]
    write_rows(tmp_path / "dolly.jsonl", [*rows, {"instruction": "Why?", "context": "", "response": "No."}])

    def reply(body):
        answers = chat_server.answers(body)
        answers["choices"][0]["message"]["content"] = "What is it that gives us light?"
        return 200, answers

    chat_server.reply = reply
    options = {"articles": tmp_path / "lines.txt", "eli5": tmp_path / "dolly.jsonl", "question_model": question_model}
    options |= {"question_model.server.url": chat_server.url, "question_model.server.model": "tiny"}
    simple_text_data.main(config(tmp_path, **options, **{"filters.min_article_words": 5}))
    parts = {file.stem: [row for _, row in read_rows(file)] for file in (tmp_path / "data").glob("sft_*.jsonl")}
    made = [row for rows in parts.values() for row in rows]
    answers = {source: [r["messages"][1]["content"] for r in made if r["source"] == source] for source in SOURCES}
    assert sorted(answers["dolly"]) == sorted(EASY.format(f"sun {i}") for i in range(20))
    assert len(answers["simple_wikipedia"]) == 80
    sentences = ("The town 0 0 is a big thing, and it is hot.", "It gives us light.")
    plain = " ".join([*sentences, "We need the town 0 0 to grow all of our food."])
    assert plain in answers["simple_wikipedia"]
    stretches = {part: {r["id"].split(".")[0] for r in rows if "." in r["id"]} for part, rows in parts.items()}
    assert sum(map(len, stretches.values())) == len(set.union(*stretches.values())) > 20


def test_bad_rows_are_refused_or_counted(tmp_path: Path) -> None:
    rows = [*posts(6), {"title": "no answers"}, {"title": "bad score", "answers": [{"text": "a", "score": "many"}]}]
    write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(InputError, match=r"bad\.jsonl:7: answers: must be texts and scores"):
        simple_text_data.main(config(tmp_path, eli5=tmp_path / "bad.jsonl"))
    simple_text_data.main(config(tmp_path, eli5=tmp_path / "bad.jsonl", on_bad_row="skip"))
    source = figures(tmp_path / "data")["sources"]["eli5"]
    assert source["read"] == 8 and sum(source["bad_rows"].values()) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"eli5": "null"}, "eli5, articles: name at least one"),
        ({"validation_share": 0.9}, "together they must leave rows"),
        ({"rows": 0}, "rows"),
        (
            {"question_model": "x", "question_model.backend": "vllm"},
            "question_model.backend: must be in_process, server, engine, or package.module",
        ),
        ({"filters.min_words": 1000}, "no row is left"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(tmp_path: Path, options: dict, sentence: str) -> None:
    only_prompts = options == {"filters.min_words": 1000}
    with pytest.raises(InputError, match=sentence):
        made = config(tmp_path, **options)
        if only_prompts:
            write_rows(tmp_path / "posts.jsonl.gz", [{"title": "[deleted]", "answers": []}])
        simple_text_data.main(made)


def test_real_text(tmp_path: Path, shared_data: Path) -> None:
    """OASST's first answers, the best rank with the most upvotes: rows of all three kinds, and every count adds up."""
    rows = []
    for _, tree in read_rows(shared_data / "oasst" / "en_100_tree.jsonl"):
        replies = tree["prompt"]["replies"]
        answers = [{"text": r["text"], "score": 3 + len(replies) - (r.get("rank") or 0)} for r in replies]
        rows.append({"id": tree["message_tree_id"], "title": tree["prompt"]["text"], "answers": answers})
    write_rows(tmp_path / "oasst.jsonl", rows)
    simple_text_data.main(config(tmp_path, eli5=tmp_path / "oasst.jsonl"))
    found = figures(tmp_path / "data")
    assert found["rows"].keys() == {"sft", "preferences", "prompts"}
    steps = [step for step in found["sources"]["eli5"]["steps"] if step["unit"] == "answers"]
    assert steps[0]["in"] == sum(len(row["answers"]) for row in rows)
    for before, after in pairwise(steps):
        assert after["in"] == before["out"]
    assert found["sources"]["eli5"]["histograms"]["words"]["kept"]["n"] == steps[-1]["out"]


def test_the_shipped_config_parses(tmp_path: Path) -> None:
    file = ROOT / "recipes" / "configs" / "simple_text" / "simple_text_data.yaml"
    given = ["--config", str(file), "--eli5", "eli5.jsonl.zst"]
    made = parse_config(SimpleTextDataConfig, given)
    assert made.question_model is not None and made.question_model.server is not None
    assert made.filters == SimpleTextDataConfig(output=tmp_path, eli5="x").filters


def test_as_a_command(tmp_path: Path) -> None:
    write_rows(tmp_path / "posts.jsonl", posts(9))
    command = [sys.executable, "recipes/data/simple_text_data.py", "--output"]
    given = [*command, str(tmp_path / "data"), "--eli5", str(tmp_path / "posts.jsonl")]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "from 9 rows of ELI5" in done.stdout
    given = [*command, str(tmp_path / "other"), "--eli5", "nowhere.jsonl"]
    refused = subprocess.run(given, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "nowhere.jsonl" in refused.stderr and "Traceback" not in refused.stderr
