"""The tools around a run, from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from rlhf.iteration.ledger import Ledger, output_digest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    (folder / "sft").mkdir(parents=True)
    (folder / "sft" / "out.txt").write_text("x")
    Ledger(folder / "ledger.jsonl").append("finished", "sft", output=output_digest(folder / "sft"))
    return folder


def summary(run: Path, **figures: Any) -> Path:
    run.mkdir(exist_ok=True)
    (run / "summary.json").write_text(json.dumps({"versions": [{"name": "sft", **figures}]}))
    return run


def test_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def verify() -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(run)])
        return int(str(ended.value.code)), capsys.readouterr().out

    assert verify() == (0, f"{'sft':<24} ok\n1 finished stages, all as they were\n")
    (run / "sft" / "out.txt").write_text("y")
    assert verify()[0] == 1
    shutil.rmtree(run / "sft")
    code, said = verify()
    assert code == 1 and "MISSING" in said


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


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['rlhf', '--help']; import rlhf.cli\ntry: rlhf.cli.main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'jsonargparse', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
