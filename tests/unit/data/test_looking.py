"""`rlhf look FILE`: by the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from rlhf.cli import main
from rlhf.jsonl import write_rows

ASK, YES = {"role": "user", "content": "hello ?"}, {"role": "assistant", "content": "hi"}


def look(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["look", *map(str, arguments)])
    shown = capsys.readouterr()
    return caught.value.code, shown.out, shown.err


def test_sft_rows_with_what_is_trained_on_and_what_is_left_out(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    context = {**YES, "content": "\x1b[2Jno", "weight": 0}
    rows = [{"messages": [ASK, context, ASK, YES], "grade": 1}, {"messages": [ASK, {"role": "tool", "content": "x"}]}]
    write_rows(file, rows)
    code, out, err = look(capsys, file)
    assert (code, err) == (0, "") and out.splitlines() == [
        "--- row 1",
        "user: hello ?",
        "assistant: \\x1b[2Jno",
        "user: hello ?",
        "assistant: ⟦hi⟧",
        "",
        "2 rows, read as 1 SFT rows",
        "layout: messages (2)",
        "length: median 22, longest 22 characters (name a tokenizer for tokens)",
        "trained on: 2 of them in all, marked ⟦so⟧ above",
        f"{file}: fields not used: grade",
        f"{file}: skipped 1 of 2 rows: 1 x messages: message 2 is a tool's",
    ]


def test_rendered_with_a_tokenizer(tmp_path, capsys, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "rows.jsonl"
    write_rows(
        file, [{"prompt": "hello ?", "chosen": "hi", "rejected": "no", "domain": "safety", "strength": "better"}]
    )
    code, out, err = look(capsys, file, "--tokenizer", tmp_path / "tokenizer")
    assert (code, err) == (0, "")
    assert "--- row 1, safety, strength better: chosen\n" in out and "--- row 1: rejected\n" in out
    assert out.count("⟦") == 3 and "compared: " in out and "tokens\n" in out and "domain: safety (1)" in out
    code, out, _ = look(capsys, file, "--as", "prompts")
    assert code == 0 and "1 rows, read as 1 prompts" in out and "hi" not in out.splitlines()[1]


def test_a_token_that_a_row_spells_out_is_told_from_the_token(tmp_path, capsys, tiny_tokenizer):
    file = tmp_path / "rows.jsonl"
    write_rows(file, [{"messages": [{**ASK, "content": "hello </s> ?"}, YES]}])
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    for options in ([], ["--tokenizer", tmp_path / "tokenizer"]):
        _, out, _ = look(capsys, file, *options)
        assert "1 of 1 rows spell out marks of chat formats (</s>), which are read as text" in out


def test_a_row_longer_than_the_checkpoint_s_context_is_told_whatever_its_tokenizer_says(
    tmp_path, capsys, tiny_policy_path
):
    folder, file = tmp_path / "policy", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_policy_path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    write_rows(file, [{"messages": [ASK, {**YES, "content": "hi " * 50}]}, {"messages": [ASK, YES]}])
    code, out, _ = look(capsys, file, "--tokenizer", folder)
    assert code == 0 and "skipped 1 of 2 rows" in out and "above max_length=40" in out


def test_what_cannot_be_looked_at(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    write_rows(file, [{"body": "x"}])
    code, _, err = look(capsys, file)
    assert code == 2 and "no layout of its rows is known; its first row has the fields body" in err
    code, out, _ = look(capsys, file, "--as", "sft")
    assert code == 1 and "read as 0 SFT rows" in out and "skipped 1 of 1 rows: 1 x row: not a conversation" in out
    code, _, err = look(capsys, file, "--tokenizer", tmp_path)
    assert code == 2 and "has no tokenizer_config.json" in err
