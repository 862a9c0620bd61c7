"""The driver's recipe: what it says before it starts, and one small run of the real stages."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_plan import change, embedded_configs, make_small

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import PEOPLE, Store
from rlhf.cli import main
from rlhf.configuration import parse_config
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.plan import make_plan
from rlhf.iteration.steps import KINDS
from rlhf.start.run import record_config

ROOT = Path(__file__).resolve().parents[2]


def run(configs: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "recipes/iterative_rlhf.py", "--config", str(configs / "iterative_rlhf.yaml")]
    given = ["--configs", str(configs), "--run", str(folder), *options]
    return subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return embedded_configs(tmp_path)


@pytest.mark.parametrize("name", ["embedded/iterative_rlhf", "embedded/five_versions", "hh/iterative_rlhf"])
def test_the_shipped_plans_are_planned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `rlhf plan`, which parses every stage's settings."""
    monkeypatch.chdir(ROOT)
    hh = ["--inputs.hh", str(tmp_path)] if name.startswith("hh") else []
    options = ["--config", f"recipes/configs/{name}.yaml", "--run", str(tmp_path / "run"), *hh]
    main(["plan", *options])
    said = capsys.readouterr().out
    stages = make_plan(parse_config(IterativeConfig, options))
    assert all(f"\n{stage.name:<24} to run" in f"\n{said}" for stage in stages) and "disk: " in said
    outside = {str(path) for stage in stages for path in stage.inputs if not path.is_relative_to(tmp_path)}
    assert not outside, "nothing is read of another run"


def test_a_plan_says_where_people_are_waited_for_and_how_many_judgements_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    asks = {"preferences": {"annotator": "people"}}
    options = ["--config", "recipes/configs/embedded/iterative_rlhf.yaml", "--run", str(run)]
    options += ["--versions", json.dumps([{"name": "v1", "steps": [asks]}])]
    main(["plan", *options])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("v1/preferences"))
    assert line.endswith(f"; will wait for people, who judge with: rlhf annotate {run}")
    ask = [{"role": "user", "content": "Why?"}]
    with Store(run / "labels.sqlite") as store:
        store.add_batch("v1/preferences", [Pair(ask, "a", "b"), Pair(ask, "a", "c")], asked=PEOPLE)
        store.keep("v1/preferences", Judgement(store.pairs("v1/preferences")[0].id, "ann", "a"))
    main(["plan", *options])
    said = f"; waits for people: 1 of 2 judgements of v1/preferences; they give them with: rlhf annotate {run}\n"
    assert said in capsys.readouterr().out


def test_the_plan_of_a_run_is_known_by_its_folder_whichever_file_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    run.mkdir()
    options = ["--config", "recipes/configs/embedded/five_versions.yaml", "--run", str(run), "--seed", "3"]
    record_config(parse_config(IterativeConfig, options))
    main(["plan", *options, "--commands"])
    said = capsys.readouterr().out
    main(["plan", str(run), "--commands"])
    assert capsys.readouterr().out == said and "--world.seed 3" in said
    (run / "config.yaml").write_text("[1")
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(run)])
    assert f"error: run: {run}/config.yaml: " in capsys.readouterr().err


def test_the_five_versions_are_the_paper_s_with_every_kind_of_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = ["--config", "recipes/configs/embedded/five_versions.yaml", "--run", str(tmp_path / "run")]
    stages = make_plan(parse_config(IterativeConfig, options))
    of_users_files = {"data", "referee"}
    asks_from_outside = {"evaluate_safety", "evaluate_instructions", "safety_benchmarks", "leaderboard"}
    of_the_evidence = {
        *asks_from_outside,
        "evaluate_rewards",
        "merge_adapter",
        "evaluate_text",
    }  # tests/recipes/studies
    assert {stage.step for stage in stages} >= set(KINDS) - of_users_files - of_the_evidence
    makers = [stage.name for stage in stages if "policy" in stage.makes and stage.version]
    sampled = [name for name in makers if name.endswith("/rejection_sampling")]
    assert sampled == [f"v{n}/rejection_sampling" for n in range(1, 6)]
    assert [name for name in makers if name.endswith("/ppo")] == ["v5/ppo"] == makers[-1:]
    assert [name for name in makers if name.endswith("/ghost_attention")] == ["v3/ghost_attention"]
    yamls = {stage.name: yaml.safe_load(stage.config_file.read_text()) for stage in stages}
    read = [text for stage in stages for text in _texts({**yamls[stage.name], **stage.overrides})]
    assert not [text for text in read if text.startswith("runs/")], "what a YAML names of the demo's run is set anew"


def test_stages_that_are_alike_are_read_as_one_alone_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than half of the five versions' stages are read in full, and each config is the one of a full reading."""
    monkeypatch.chdir(ROOT)
    options = ["--config", "recipes/configs/embedded/five_versions.yaml", "--run", str(tmp_path / "run")]
    stages = make_plan(parse_config(IterativeConfig, options))
    read: list[Sequence[str]] = []

    def in_full(config_class: type, words: Sequence[str]) -> Any:
        read.append(words)
        return parse_config(config_class, words)

    monkeypatch.setattr("rlhf.configuration.parse_config", in_full)
    found = check_plan(stages)
    assert len(read) < len(stages) / 2
    assert found == {stage.name: parse_config(type(found[stage.name]), stage.arguments) for stage in stages}


def _texts(value: object) -> Iterator[str]:
    """Every text in a config, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for part in value.values() for text in _texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _texts(part))


def test_a_driver_that_is_refused_leaves_the_run_s_config_as_it_is(configs: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("of the driver that works")
    with (tmp_path / "run" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = run(configs, tmp_path / "run", "--seed", "1")
    assert refused.returncode == 2 and "another driver is working" in refused.stderr
    assert (tmp_path / "run" / "config.yaml").read_text() == "of the driver that works"


def test_a_typo_in_the_last_stage_is_told_before_the_first_runs(configs: Path, tmp_path: Path) -> None:
    change(configs / "ppo.yaml", ppo__betta=0.1)
    refused = run(configs, tmp_path / "run")
    assert refused.returncode == 2 and not (tmp_path / "run").exists()
    assert refused.stderr.startswith("error: v3/ppo (") and "betta" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not refused.stdout


def test_the_driver_loads_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "runpy.run_path('recipes/iterative_rlhf.py')\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small(configs: Path) -> Path:
    return make_small(configs)


@pytest.mark.long
def test_two_versions_of_the_real_stages(small: Path, tmp_path: Path) -> None:
    """Everything, from no data at all to the report; then nothing is run again; then what a changed YAML asks for."""
    folder = tmp_path / "run"
    steps = ["preferences", "rewards", "sweep", "rejection_sampling", "evaluate"]
    versions = [{"name": "v1", "steps": steps}, {"name": "v2", "steps": [*steps, "ppo", "evaluate"]}]
    options = ["--versions", json.dumps(versions), "--launch", '{"ppo": {"processes": 2}}']
    done = run(small, folder, *options)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert [version["name"] for version in summary["versions"]] == ["sft", "v1", "v2", "v2_ppo"]
    for version in summary["versions"]:
        assert version["gold_safety_ci"][0] <= version["gold_safety"] <= version["gold_safety_ci"][1]
        assert (version["win_rate_vs_sft"] is None) == (version["name"] == "sft")
    models = [(model["version"], model["domain"]) for model in summary["reward_models"]]
    assert models == [(v, d) for v in ("v1", "v2") for d in ("helpfulness", "safety")]
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    for version in ("v1", "v2"):
        sweep = json.loads((folder / version / "temperature_sweep" / "sweep.json").read_text())
        selection = json.loads((folder / version / "rejection_sampling" / "selection.json").read_text())
        assert selection["temperature"] == pytest.approx(sweep["best"]["temperature"])
    assert set(selection["candidates_by_version"]) == {"v1", "v2"}, "the pool of all versions"
    assert {path.name for path in (folder / "pool").iterdir()} == {"v1.parquet", "v2.parquet"}
    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    assert recorded["config"]["seed"] == 0 and recorded["packages"]["torch"]

    change(small / "evaluate.yaml", samples_per_prompt=2)
    again = run(small, folder, *options)
    assert again.returncode == 0, again.stderr
    started = {line.split()[2] for line in again.stdout.splitlines() if " started" in line}
    assert started == {"sft_evaluation", "v1/evaluation", "v2/evaluation", "v2/ppo_evaluation"}


SRUN = f"{sys.executable} {ROOT / 'tests' / 'srun.py'} -N 2"


@pytest.mark.long
@pytest.mark.parametrize("zero", [2, 3])
def test_the_plan_on_two_machines_under_zero(small: Path, tmp_path: Path, zero: int) -> None:
    """Reward models under ZeRO-2, everything else that trains under ZeRO-`zero`; two processes stand for two nodes."""
    folder = tmp_path / "run"
    two = {"machines": 2, "processes": 2, "prefix": SRUN}
    file = f"ds_configs/accelerate_cpu_zero{zero}.yaml"
    launch = {name: {"accelerate": file, **two} for name in ("sft", "rejection_sampling", "ppo")}
    launch |= {"rewards": {"accelerate": "ds_configs/accelerate_cpu_zero2.yaml", **two}, "evaluate": two}
    versions = [{"name": "v1", "steps": ["preferences", "rewards", "rejection_sampling", "ppo", "evaluate"]}]
    options = ["--versions", json.dumps(versions), "--launch", json.dumps(launch)]
    done = run(small, folder, *options)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert [version["name"] for version in summary["versions"]] == ["sft", "v1_ppo"]
    for name in ("sft", "v1/helpfulness_reward", "v1/rejection_sampling", "v1/ppo", "v1/ppo_evaluation"):
        assert json.loads((folder / name / "stage.json").read_text())["launch"]["processes"] == 2, name
    again = run(small, folder, "--versions", json.dumps(versions))
    assert again.returncode == 0 and " started" not in again.stdout, "how a stage is started runs none again"
