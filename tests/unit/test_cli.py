"""The tools around a run, from the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from rlhf.configuration import parse_config
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.ledger import Ledger, output_digest
from rlhf.iteration.plan import make_plan
from rlhf.iteration.summary import write_summary
from rlhf.stage.digests import FileDigests

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    (folder / "sft").mkdir(parents=True)
    (folder / "sft" / "out.txt").write_text("x")
    files = FileDigests(folder).of_folder(folder / "sft")
    Ledger(folder / "ledger.jsonl").append("finished", "sft", output=output_digest(files), files=files)
    return folder


def summary(run: Path, **figures: Any) -> Path:
    run.mkdir(exist_ok=True)
    (run / "summary.json").write_text(json.dumps({"versions": [{"name": "sft", **figures}]}))
    return run


def verify(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(run)])
    return int(str(ended.value.code)), [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_verify_tells_every_file_of_a_stage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(run, capsys) == (0, [f"{'sft':<24} ok", "all as it was"])
    file = run / "sft" / "out.txt"
    before = file.stat()
    file.write_text("y")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    (run / "sft" / "more.txt").write_text("z")
    code, said = verify(run, capsys)
    assert code == 1 and {"out.txt is changed", "more.txt is added"} <= set(said)
    file.unlink()
    assert "out.txt is missing" in verify(run, capsys)[1]
    shutil.rmtree(run / "sft")
    assert verify(run, capsys)[1][:2] == [f"{'sft':<24} CHANGED", "its folder is missing"]


def test_verify_of_an_empty_ledger_does_not_pass(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "ledger.jsonl").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(run)])
    assert ended.value.code == 2 and "knows no finished stage" in capsys.readouterr().err


def test_verify_tells_the_pools_links_and_the_summary(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["rejection_sampling", "evaluate"]
    given = dict.fromkeys(("policy", "prompts", "test_prompts", "helpfulness", "safety"), "given")
    config = {"run": "elsewhere", "configs": "c", "inputs": given, "versions": [{"name": "v1", "steps": steps}]}
    (run / "config.yaml").write_text(json.dumps({"config": config}))
    answers = run / "v1" / "rejection_sampling" / "completions.parquet"
    answers.parent.mkdir(parents=True)
    answers.write_text("answers")
    figures = {"name": "v1", "gold_safety": 0.5}
    (run / "v1" / "evaluation").mkdir()
    (run / "v1" / "evaluation" / "evaluation.json").write_text(json.dumps(figures))
    (run / "config.json").write_text(json.dumps({**config, "run": str(run)}))
    stages = make_plan(parse_config(IterativeConfig, ["--config", str(run / "config.json")]))
    summary = write_summary(run, stages)
    assert verify(run, capsys)[0] == 0
    (run / "pool" / "v1.parquet").unlink()
    (run / "pool" / "v1.parquet").write_text("others")
    differs = "pool/v1.parquet differs from v1/rejection_sampling/completions.parquet"
    assert differs in verify(run, capsys)[1]
    (run / "pool" / "v1.parquet").write_text("answers")
    summary.write_text(summary.read_text().replace("0.5", "0.6"))
    assert verify(run, capsys)[1][-2] == "versions is not what the stages' files say"
    summary.write_text("[1")
    assert verify(run, capsys)[0] == 1
    answers.unlink()
    said = verify(run, capsys)[1]
    assert any("pool/v1.parquet: there is no v1/rejection_sampling/completions.parquet" in line for line in said), said
    answers.write_text("answers")
    (run / "pool" / "mine.parquet").write_text("mine")
    assert "pool/mine.parquet belongs to no stage of the plan" in verify(run, capsys)[1]
    write_summary(run, stages)
    assert (run / "pool" / "mine.parquet").read_text() == "mine", "what the run did not put there stands"
    (run / "pool" / "mine.parquet").unlink()
    summary.write_text("[1")
    Ledger(run / "ledger.jsonl").append("ended", finished=3, stages=3)
    summary.unlink()
    (run / "pool" / "v1.parquet").unlink()
    code, said = verify(run, capsys)
    assert "pool/v1.parquet is missing" in said
    assert code == 1 and "it is missing, though every stage is finished" in said


def test_compare_says_which_summary_cannot_be_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").write_text("[1")
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(run), str(run)])
    assert ended.value.code == 2 and "summary.json is no summary of a run" in capsys.readouterr().err


def test_a_summary_with_intervals_is_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As every run with gold scores has them."""
    version = {"name": "sft", "gold_safety": 0.5, "gold_safety_ci": [0.4, 0.6]}
    (run / "summary.json").write_text(json.dumps({"versions": [version]}))
    main(["compare", str(run), str(run)])
    assert "gold_safety" in capsys.readouterr().out


@pytest.mark.parametrize(
    "versions",
    [3, [1], [{}], [{"name": 3}], [{"name": "sft", "gold_safety": "much"}], [{"name": "a", "gold_safety_ci": [1]}]],
)
def test_a_summary_of_another_shape_is_told(versions: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").write_text(json.dumps({"versions": versions}))
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(run), str(run)])
    assert ended.value.code == 2 and "summary.json is no summary of a run" in capsys.readouterr().err


def test_compare(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary(run, gold_safety=0.5, mean_length=10.0, kl_from_sft=None)
    second = summary(tmp_path / "second", gold_safety=0.75)
    main(["compare", str(run), str(second)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sft", "gold_safety", "0.500", "0.750", "0.250"] in rows
    assert ["sft", "mean_length", "10.000", "-", "-"] in rows
    assert not any("kl_from_sft" in row for row in rows)


@pytest.mark.parametrize("command", [["verify", "nowhere"], ["compare", "a", "b"], ["report", "nowhere"]])
def test_no_run_there(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: run: ") and said.count("\n") == 1


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_statistics(tiny_tokenizer: Any, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "what is the river ?", "chosen": "mora .", "rejected": "a goat"}
    pku = {"prompt": "hello", "response_0": "sure hello", "response_1": "no", "better_response_id": 0}
    pku |= {"safer_response_id": 1, "is_response_0_safe": False, "is_response_1_safe": True}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "rejected": "mora ."}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps(pku) + "\n")
    main(
        [
            "statistics",
            str(tmp_path / "a.jsonl"),
            str(tmp_path / "b.jsonl"),
            "--domain=safety",
            f"--tokenizer={tokenizer}",
        ]
    )
    said = capsys.readouterr()
    assert "a.jsonl: skipped 1 of 2 rows" in said.err
    prompt, *answers = (len(tiny_tokenizer.tokenize(text)) for text in row.values())
    answer = sum(answers) / 2
    lines = said.out.splitlines()
    assert lines[0].startswith("| set | comparisons | turns / dialogue | tokens / example |")
    assert lines[2] == f"| a.jsonl | 1 | 1.0 | {prompt + answer:.1f} | {prompt:.1f} | {answer:.1f} |"
    assert lines[3].startswith("| b.jsonl | 1 | 1.0 |") and lines[4].startswith("| Total | 2 | 1.0 |")


def test_statistics_of_real_files(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("helpful-base.jsonl.gz", "harmless-base.jsonl.gz")
    tokenizer = shared_data / "stories260K"
    main(["statistics", *(str(shared_data / "hh-rlhf" / name) for name in names), "--tokenizer", str(tokenizer)])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:2] for row in cells] == [[names[0], "1,858"], [names[1], "1,828"], ["Total", "3,686"]]
    helpful, harmless, total = ([float(cell.replace(",", "")) for cell in row[1:]] for row in cells)
    assert all(min(a, b) <= t <= max(a, b) for a, b, t in zip(helpful[1:], harmless[1:], total[1:], strict=True))
    assert helpful[1] > 1 and helpful[2] > helpful[3] + helpful[4]  # several turns


def test_statistics_says_what_is_wrong(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, folder, sentence in (
        ("none.jsonl", tokenizer, "none.jsonl: there is no such file"),
        ("none.jsonl", tmp_path, "tokenizer: .* has no tokenizer_config.json"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["statistics", str(tmp_path / file), f"--tokenizer={folder}"])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1 and re.search(sentence, said)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['rlhf', '--help']; import rlhf.cli\ntry: rlhf.cli.main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'jsonargparse', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As in `rlhf recipe list | head -1`: the pipe's other end is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "rlhf.cli", "recipe", "list"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
