"""Input at the edge of what a reader can take: a sentence with file and line, or work."""

from __future__ import annotations

import os

import pytest

from rlhf.conversation import Renderer
from rlhf.data.loading import load_conversations, load_preferences, load_prompts, load_texts
from rlhf.errors import InputError, quoted
from rlhf.jsonl import write_rows

ASK, YES = {"role": "user", "content": "a ?"}, {"role": "assistant", "content": "b"}
HALF = "\\ud83d"  # in JSON: the first half of an emoji
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 6000


@pytest.mark.parametrize(
    ("line", "load", "sentence"),
    [
        (f'{{"prompt": "hi {HALF}"}}', load_prompts, r"messages: message 1 \(user\): holds half a character"),
        (f'{{"id": "{HALF}", "prompt": "hi"}}', load_prompts, "id: holds half a character"),
        (f'{{"text": "{HALF} hi"}}', load_texts, "text: holds half a character"),
        (f'{{"prompt": "hi", "completion": "{HALF}"}}', load_conversations, "holds half a character"),
        (f'{{"prompt": "hi", "chosen": "{HALF}", "rejected": "b"}}', load_preferences, "chosen: holds half a char"),
        (f'{{"prompt": "hi", "source": "{HALF}"}}', load_prompts, "source: holds half a character"),
        (f'{{"prompt": {DEEP}}}', load_prompts, "is nested too deeply"),
        (f'{{"prompt": {"[" * 600 + "]" * 600}}}', load_prompts, "messages: message 1 must be"),
        (f'{{"prompt": {LONG}}}', load_prompts, "has a number of more digits than can be read"),
        (f'{{"prompt": "a", "response": "b", "helpfulness": {LONG[:4000]}}}', load_preferences, "must be a number"),
    ],
)
def test_a_sentence_with_file_and_line(tmp_path, line, load, sentence):
    path = tmp_path / "r.jsonl"
    good = '{"text": "x", "prompt": "x", "completion": "y"}'
    path.write_text(f"{good}\n{line}\n" if load is not load_preferences else f"\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"r\.jsonl:2: .*{sentence}") as caught:
        load(path)
    assert len(str(caught.value)) < 600 and str(caught.value).encode()


def test_an_array_that_cannot_be_read(tmp_path):
    lines = '{"prompt": "a"}\n{"a" 2}'
    for content, sentence in ((DEEP, "nested too deeply"), (f"[{LONG}]", "more digits"), (lines, ":2: not valid")):
        (tmp_path / "r.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=sentence):
            load_prompts(tmp_path / "r.json")


def test_a_whole_emoji_is_read(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"prompt": "hi \\ud83d\\ude00"}\n', encoding="utf-8")
    assert load_prompts(tmp_path / "r.jsonl")[0].messages[0]["content"] == "hi \U0001f600"


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="is a pipe or a device"):
        load_prompts(tmp_path / "r.jsonl")


def test_a_value_in_a_sentence_is_short_however_large():
    nested: list = []
    for _ in range(50_000):
        nested = [nested]
    for value in (nested, "x" * 10_000_000, {"a": list(range(100_000))}, 10**4000):
        assert len(quoted(value)) <= 60


def test_a_row_of_many_fields_is_a_short_sentence(tmp_path):
    row = {f"x{i}": i for i in range(50_000)} | {"y" * 100_000: 1}
    write_rows(tmp_path / "r.jsonl", [row])
    for load in (load_conversations, load_preferences, load_prompts):
        with pytest.raises(InputError, match=r"its fields are x0, x1, .*, x29 and 49971 more") as caught:
            load(tmp_path / "r.jsonl")
        assert len(str(caught.value)) < 600


def test_rows_of_twenty_megabytes_are_read_and_refused_by_the_renderer(tmp_path, tiny_tokenizer):
    write_rows(tmp_path / "r.jsonl", [{"messages": [ASK, {**YES, "content": "word " * 4_000_000}]}])
    (dialogue,) = load_conversations(tmp_path / "r.jsonl")
    with pytest.raises(InputError, match=r"takes more than 64 tokens, above max_length=64; .*begins 'a \?'"):
        Renderer(tiny_tokenizer, max_length=64).dialogue(dialogue)
    early = [ASK, {**YES, "content": "word " * 4_000_000}, ASK, YES]
    assert Renderer(tiny_tokenizer, max_length=64).dialogue(early) == Renderer(tiny_tokenizer).dialogue([ASK, YES])


def test_long_dialogues_are_cut_by_few_renderings(tiny_tokenizer, monkeypatch):
    turns = [{**ASK, "content": f"{i} ?"} if i % 2 == 0 else {**YES, "content": f"{i}"} for i in range(1600)]
    renderer = Renderer(tiny_tokenizer, max_length=96)
    rendered = []
    whole = Renderer._whole
    monkeypatch.setattr(
        Renderer, "_whole", lambda self, c, *rest: rendered.append(sum(map(len, c))) or whole(self, c, *rest)
    )
    result = renderer.dialogue(turns)
    assert 0 < len(result.input_ids) <= 96 and sum(rendered) < 2 * len(turns)
    unlimited = Renderer(tiny_tokenizer)
    kept = next(n for n in range(2, 90, 2) if len(unlimited.dialogue(turns[-n - 2 :]).input_ids) > 96)
    assert result == unlimited.dialogue(turns[-kept:])
    assert renderer.prompt_ids(turns[:-1]) == unlimited.prompt_ids(turns[-1 - len(_fit(unlimited, turns)) : -1])


def _fit(renderer, turns):
    prompts = [turns[-n - 1 : -1] for n in range(1, 90, 2)]
    return max((p for p in prompts if len(renderer.prompt_ids(p)) <= 96), key=len)


def test_an_answer_that_is_not_trained_on_is_masked(tiny_tokenizer):
    renderer = Renderer(tiny_tokenizer)
    context = [ASK, {**YES, "train": False}]
    plain, marked = renderer.dialogue([ASK, YES, ASK, YES]), renderer.dialogue([*context, ASK, YES])
    assert plain.input_ids == marked.input_ids and plain.loss_mask != marked.loss_mask
    assert marked.loss_mask == renderer.dialogue([ASK, YES, ASK, YES], train="last").loss_mask
    assert not any(renderer.dialogue([ASK, YES, *context]).loss_mask[len(renderer.dialogue([ASK, YES]).input_ids) :])
    assert not any(renderer.dialogue([ASK, YES, *context], train="last").loss_mask)
