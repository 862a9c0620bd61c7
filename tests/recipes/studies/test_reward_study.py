"""recipes/studies/reward_study.py on a tiny model: each model in its folder, nothing run twice, the page, bad input."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlhf.data.rows import STRENGTHS, Preference
from rlhf.errors import InputError
from rlhf.jsonl import write_rows
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.studies.reward_study import StudyModel
from rlhf.training.config import OptimizerConfig

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted((ROOT / "recipes" / "configs").glob("*/*_study.yaml"))
CONFIGS = [file for file in STUDIES if "recipes/studies/reward_study.py" in file.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "reward_study_recipe", ROOT / "recipes" / "studies" / "reward_study.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reward_study_recipe"] = module
    spec.loader.exec_module(module)
    return module


def rows(first: int, count: int) -> list[Preference]:
    return [
        Preference(
            f"r{i}",
            [{"role": "user", "content": f"what is it {i} ?"}],
            f"the river of velda is mora {i}",
            f"no {i}",
            STRENGTHS[i // 2 % 4],  # type: ignore[arg-type]
            True,
            i % 3 != 0,
            "safety" if i % 2 else "helpfulness",
        )
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def config(recipe: ModuleType, tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("study")
    for number, run in enumerate(("a", "b")):
        write_rows(folder / run / "train.jsonl", (row.to_dict() for row in rows(100 * number, 16)))
        write_rows(folder / run / "test.jsonl", (row.to_dict() for row in rows(100 * number + 50, 16)))
    optimizer = OptimizerConfig(learning_rate=1e-3, batch_size=4, micro_batch_size=4)
    return recipe.RewardStudyConfig(
        output=folder / "out",
        model=StudyModel(
            str(tiny_policy_path), ("{run}/train.jsonl",), training=RewardTrainingConfig(optimizer=optimizer)
        ),
        variants={
            "helpful": {},
            "safe": {"learns": "safety", "training.safety_loss_weight": 1.0, "weights": "random"},
        },
        runs=(str(folder / "a"), str(folder / "b")),
        test_preferences=("{run}/test.jsonl",),
        seeds=(0, 7),
        fractions=(0.5, 1.0),
    )


@pytest.fixture(scope="module")
def study(recipe: ModuleType, config: Any) -> dict[str, Any]:
    pytest.importorskip("sklearn")
    recipe.main(config)
    found: dict[str, Any] = json.loads((config.output / "study.json").read_text())
    return found


def test_every_variant_fraction_and_seed_is_trained_and_measured(study: dict[str, Any], config: Any) -> None:
    names = {f"{v}_{f:g}_seed{s}" for v in config.variants for f in config.fractions for s in config.seeds}
    assert {path.name for path in config.output.iterdir()} == names | {"study.json", "index.html"}
    assert (config.output / "safe_1_seed7/checkpoint/safety_head.safetensors").is_file()
    assert not (config.output / "safe_1_seed7/untrained").exists(), "what random weights it started from is gone"
    assert not (config.output / "helpful_1_seed7/checkpoint/safety_head.safetensors").exists()
    assert [(m["variant"], m["fraction"], m["training_pairs"]) for m in study["models"]] == [
        ("helpful", 0.5, 4),
        ("helpful", 1.0, 8),
        ("safe", 0.5, 4),
        ("safe", 1.0, 8),
    ]
    stage = json.loads((config.output / "safe_1_seed7/stage.json").read_text())
    assert stage["config"]["model"]["preferences"] == [config.runs[1] + "/train.jsonl"]
    for model in study["models"]:
        accuracy = model["groups"]["safety"]["figures"]["accuracy"]
        assert len(accuracy["values"]) == 2 and accuracy["ci"][0] <= accuracy["mean"] <= accuracy["ci"][1]
        assert (accuracy["gain"] is None) == (model["variant"] == "helpful")
        assert "unsafe_recall" in model["groups"]["all"]["figures"]
        assert ("head_unsafe_recall" in model["groups"]["all"]["figures"]) == (model["variant"] == "safe")
        over = model["groups"]["safety"]["over_bag_of_words"]
        assert over["pairs"] == 16 and over["ci"][0] <= over["gain"] <= over["ci"][1]  # 8 of each run folder
        bag = model["groups"]["safety"]["figures"]["bag_of_words"]["mean"]
        assert over["gain"] == pytest.approx(accuracy["mean"] - bag)
    assert study["baselines"]["longer wins"]["all"]["figures"]["accuracy"]["values"] == [1.0, 1.0]
    assert "bag of words, both" in study["baselines"]


def test_the_page_needs_no_other_file_and_has_all_panels(study: dict[str, Any], config: Any) -> None:
    page = (config.output / "index.html").read_text()
    assert "<script" not in page and "<link" not in page and "http" not in page.replace("http://www.w3.org", "")
    # 2 domains: data, strength, length; and the scores of 2 variants on both
    assert page.count("<figure>") == 3 * 2 + 2 * 2
    assert "safe, 50\u00a0%" in page and "gain over helpful, in points" in page


def test_what_is_finished_is_not_run_again_and_what_is_gone_comes_back_the_same(
    recipe: ModuleType, study: dict[str, Any], config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(config.output / "safe_0.5_seed0")
    (config.output / "safe_0.5_seed0.partial").mkdir()  # what a kill leaves behind
    before = (config.output / "helpful_1_seed0/stage.json").stat().st_mtime_ns
    recipe.main(config)
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if line.startswith("[")] == ["[1/1] safe_0.5_seed0"]
    assert said.out.startswith("**Own and other domain, all training pairs**\n\n|  | Pairs | Helpfulness pairs | over")
    assert "**Helpfulness pairs**\n\n|  | Pairs | Accuracy | Significantly |" in said.out
    assert (config.output / "helpful_1_seed0/stage.json").stat().st_mtime_ns == before
    assert json.loads((config.output / "study.json").read_text()) == study
    with pytest.raises(InputError, match=r"helpful_0\.5_seed0 was made with another model; remove it"):
        recipe.main(replace(config, model=replace(config.model, other_share=0.5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {}}, "variants: must name at least one"),
        ({"variants": {"a/b": {}}}, "variants: a name must fit a folder .* got 'a/b'"),
        ({"seeds": (1, 1)}, r"seeds: must differ from each other, got \[1, 1\]"),
        ({"seeds": (0, 1, 2)}, "runs: 2 cannot share 3 seeds evenly; name another seed"),
        ({"runs": ()}, "runs: must name at least one"),
        ({"fractions": (0.0, 1.0)}, r"fractions: must lie in \(0, 1\], got \[0\.0, 1\.0\]"),
        ({"test_preferences": ()}, "test_preferences: must name at least one"),
        ({"test_preferences": ("{run}/none.jsonl",)}, r"test_preferences: .*a/none\.jsonl does not exist"),
        ({"variants": {"x": {"policy": "nowhere"}}}, "variants.x: policy: nowhere does not exist"),
        ({"variants": {"x": {"training.rate": 1}}}, r"variants\.x: .*training\.rate"),
        ({"variants": {"x": {"weights": "random", "training.adapter.r": 4}}}, r"variants\.x: weights: random ones"),
    ],
)
def test_bad_settings_are_named_before_anything_is_trained(
    recipe: ModuleType, config: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recipe.main(replace(config, output=tmp_path / "out", **change))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}_{file.stem}")
def test_the_studies_of_this_repository_can_be_planned(recipe: ModuleType, file: Path) -> None:
    from rlhf.configuration import parse_config

    study = parse_config(recipe.RewardStudyConfig, ["--config", str(file)])
    runs = recipe.plan(study)
    assert len(runs) == len(study.variants) * len(study.fractions) * len(study.seeds)
    for run in runs:
        of_seed = study.runs[run.seed % len(study.runs)] + "/"
        own_policy = "{run}" in study.model.policy  # else all seeds start from one chat model
        read = [*run.model.preferences, *run.test_preferences, *([run.model.policy] if own_policy else [])]
        assert all(path.startswith(of_seed) for path in read)
    assert len({run.name for run in runs}) == len(runs) and not any("{" in run.model.policy for run in runs)


def test_missing_files_are_named_before_torch_is_loaded(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "recipes" / "studies" / "reward_study.py")]
    command += ["--config", str(CONFIGS[0])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "policy: runs/demo/sft/checkpoint does not exist; `make demo` writes it" in line
    assert "| torch" not in done.stderr and "transformers" not in done.stderr
