"""The driver's recipe: what it says before it starts, and one small run of the real stages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf.configuration import parse_config
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]


def run(configs: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "recipes/iterative_rlhf.py", "--config", str(configs / "iterative_rlhf.yaml")]
    given = ["--configs", str(configs), "--run", str(folder), *options]
    return subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def change(file: Path, **fields: object) -> None:
    """Set fields (`a__b` is a.b) of a YAML file."""
    content = yaml.safe_load(file.read_text())
    for name, value in fields.items():
        *parents, last = name.split("__")
        inner = content
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    file.write_text(yaml.safe_dump(content))


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT / "recipes" / "configs" / "embedded", tmp_path / "configs")


@pytest.mark.parametrize("name", ["embedded", "hh"])
def test_every_stage_of_the_shipped_configs_parses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = ["--config", f"recipes/configs/{name}/iterative_rlhf.yaml", "--run", str(tmp_path / "run")]
    config = parse_config(IterativeConfig, options + (["--data", str(tmp_path)] if name == "hh" else []))
    check_plan(make_plan(config))


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
