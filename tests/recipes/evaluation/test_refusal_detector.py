"""recipes/evaluation/refusal_detector.py on two files: it writes what it prints, and another recipe can use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROWS = [
    ("I cannot help.", "2_full_refusal", "2_full_refusal"),
    ("Sorry, I will not.", "2_full_refusal", "3_partial_refusal"),
    ("I cannot. But:\n- this\n- that", "3_partial_refusal", "3_partial_refusal"),
    ("Here are steps.", "1_full_compliance", "1_full_compliance"),
]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes" / "evaluation" / "refusal_detector.py"), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_two_files_are_tested_on_each_other(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from rlhf.evaluation.safety.refusals import load_detector

    header = "prompt,completion,annotation_1,annotation_2,final_label\n"
    for name in ("a", "b"):
        rows = "".join(f'q,"{text}",{first},{second},{first}\n' for text, first, second in ROWS)
        (tmp_path / f"{name}.csv").write_text(header + rows)
    done = run(tmp_path, "--output", "out", "--answers", '{"A": "a.csv", "B": "b.csv"}')
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert list(found) == ["A", "B"] and list(found["A"]) == ["rules", "trained on the others", "second person"]
    rules = found["A"]["rules"]
    assert rules["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 2]] and rules["three_labels"]["agreement"] == 1.0
    assert found["A"]["second person"]["three_labels"]["agreement"] == 0.75
    assert found["A"]["second person"]["refusal_or_not"]["agreement"] == 1.0
    assert "| rules | 100.0 % (51.0 to 100.0) | 1.00 | 100.0 % | 1.00 |" in done.stdout
    assert "| second person | 100.0 % (51.0 to 100.0) | 1.00 | 75.0 % |" in done.stdout
    load_detector(str(tmp_path / "out" / "detector.json"))([[{"role": "assistant", "content": "No."}]])


def test_one_file_is_not_enough(tmp_path: Path) -> None:
    done = run(tmp_path, "--output", "out", "--answers", '{"A": "a.csv"}')
    assert done.returncode == 2 and "error: answers: needs two models' answers or more" in done.stderr
    done = run(tmp_path, "--output", "out", "--answers", '{"A": "a.csv", "B": "b.csv"}')
    assert done.returncode == 2 and "error: answers.A: a.csv does not exist" in done.stderr


def test_check_prints_the_agreement_of_each_file_in_its_last_line(tmp_path: Path) -> None:
    """From another folder, several files behind one option; nothing is written."""
    header = "id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label\n"
    right = 'v2-1,t,q,"I’m sorry, but I can’t assist with that.",2_full_refusal,2_full_refusal,TRUE,2_full_refusal\n'
    wrong = "v2-2,t,q,Here are steps.,3_partial_refusal,3_partial_refusal,TRUE,3_partial_refusal\n"
    (tmp_path / "a.csv").write_text(header + right)
    (tmp_path / "b.csv").write_text(header + right + wrong)
    done = run(tmp_path, "--check", "a.csv", "b.csv")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"a.csv": 1.0, "b.csv": 0.5}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "b.csv"]
    done = run(tmp_path, "--check", "a.csv")
    assert json.loads(done.stdout.splitlines()[-1]) == {"a.csv": 1.0}
    done = run(tmp_path, "--check", "a.csv", "c.csv")
    assert done.returncode == 2 and "c.csv does not exist" in done.stderr
    done = run(tmp_path, "--check", "a.csv", "--output", "out")
    assert done.returncode == 2 and "error: check: writes nothing" in done.stderr
    done = run(tmp_path)
    assert done.returncode == 2 and "error: output: must name a folder, or give --check FILES" in done.stderr
