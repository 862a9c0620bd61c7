"""summary.json from the stages' files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.iteration.ledger import Ledger
from rlhf.iteration.plan import PlannedStage
from rlhf.iteration.summary import FIGURES, write_summary
from rlhf.report import build_report

STAGES = ("sft_evaluation", "v1/helpfulness_reward", "v1/safety_reward", "v1/rejection_sampling", "v1/evaluation")
STAGES += ("v2/evaluation", "v2/ppo_evaluation", "v2/ghost_attention_evaluation")


def planned(run: Path, name: str, step: str = "") -> PlannedStage:
    return PlannedStage(name, "recipe", run / "x.yaml", {}, (), run / name, step=step)


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def accuracy(domain: str, value: float) -> dict[str, Any]:
    strengths = {"significantly": {"accuracy": value, "pairs": 30, "ci": [0.5, 1.0]}}
    return {"domain": domain, "pairs": 100, "accuracy": value, "accuracy_by_strength": strengths, "longer_wins": 0.6}


def test_summary_has_the_versions_in_order_and_the_reward_models(tmp_path: Path) -> None:
    stages = [planned(tmp_path, name) for name in STAGES]
    Ledger(tmp_path / "ledger.jsonl").append("begun")
    for folder, name in (
        ("v2/ghost_attention_evaluation", "v2_gatt"),
        ("v2/ppo_evaluation", "v2_ppo"),
        ("sft_evaluation", "sft"),
        ("v1/evaluation", "v1"),
    ):
        write(tmp_path / folder / "evaluation.json", {"name": name, "gold_safety": 0.5, "finished_share": 1.0})
    write(tmp_path / "v1/safety_reward/accuracy.json", accuracy("safety", 0.7))
    write(tmp_path / "v1/helpfulness_reward/accuracy.json", accuracy("helpfulness", 0.8))
    (tmp_path / "v1/rejection_sampling").mkdir()
    (tmp_path / "v1/rejection_sampling/completions.parquet").write_bytes(b"rows")

    closing = {"made": [], "rows_used": None, "left_out": {}, "figures": {}, "suspicious": ["it is odd"]}
    stage = {"command": [], "config": {}, "inputs": {}, "seconds": 1.0, "closing": closing}
    write(tmp_path / "v1/safety_reward/stage.json", stage)

    summary = json.loads(write_summary(tmp_path, stages).read_text())

    assert list(summary) == ["seconds", "versions", "reward_models", "suspicious"] and summary["seconds"] == 0
    assert summary["suspicious"] == {"v1/safety_reward": ["it is odd"]}
    assert [version["name"] for version in summary["versions"]] == ["sft", "v1", "v2_ppo", "v2_gatt"]
    first = summary["versions"][0]
    assert tuple(first)[: len(FIGURES)] == FIGURES
    assert first["gold_safety"] == 0.5 and first["win_rate_vs_sft"] is None and first["finished_share"] == 1.0
    assert [(m["version"], m["domain"], m["accuracy"]) for m in summary["reward_models"]] == [
        ("v1", "helpfulness", 0.8),
        ("v1", "safety", 0.7),
    ]
    assert summary["reward_models"][1]["accuracy_by_strength"] == {"significantly": 0.7}
    assert summary["reward_models"][1]["pairs"] == 100 and summary["reward_models"][1]["longer_wins"] == 0.6
    assert (tmp_path / "pool" / "v1.parquet").read_bytes() == b"rows"

    shutil.copytree(tmp_path / "v1", tmp_path / "w1")
    write_summary(tmp_path, [planned(tmp_path, "w1/rejection_sampling")])
    assert [file.name for file in (tmp_path / "pool").iterdir()] == ["w1.parquet"], "v1 is no version of this run"


def test_students_stand_beside_the_versions(tmp_path: Path) -> None:
    stages = [planned(tmp_path, name) for name in ("sft_evaluation", "v1/evaluation")]
    stages.insert(1, replace(planned(tmp_path, "v1/student_small_evaluation"), student="small"))
    for stage, name in zip(stages, ("sft", "v1_small", "v1"), strict=True):
        write(stage.output / "evaluation.json", {"name": name, "mean_length": 3.0})
    summary = json.loads(write_summary(tmp_path, stages).read_text())
    assert [version["name"] for version in summary["versions"]] == ["sft", "v1"]
    assert [(student["name"], student["mean_length"]) for student in summary["students"]] == [("v1_small", 3.0)]
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "From SFT to V1" in page or "from SFT to V1" in page
    assert "student small of V1" in page


def test_a_referee_has_its_own_place(tmp_path: Path) -> None:
    stages = [planned(tmp_path, "referee_reward", "referee")]
    write(tmp_path / "referee_reward/accuracy.json", accuracy("helpfulness", 0.6))
    summary = json.loads(write_summary(tmp_path, stages).read_text())
    assert summary["referee"]["accuracy"] == 0.6 and summary["reward_models"] == []
