"""The installed package runs everything: from its wheel, in an environment of its own, from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.doors, pytest.mark.xdist_group("installed")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, made from the sdist, and the sdist."""
    pytest.importorskip("build")
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    for name in tracked():  # building writes beside the source
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    return out


@pytest.fixture(scope="module")
def rlhf(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, where the wheel is installed; what it depends on comes from this environment."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "zz_shared.pth").write_text(str(Path(torch.__file__).parents[1]))
    return folder / "bin" / "rlhf"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def run(command: Path, *options: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(command), *map(str, options)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def tracked(*folders: str) -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("which files belong to the project is what git says, and this is no checkout")
    command = ["git", "ls-files", *folders]
    return set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())


def test_the_wheel_and_the_sdist_hold_every_file(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    installed = {name.removeprefix("rlhf/") for name in zipfile.ZipFile(wheel).namelist()}
    assert tracked("recipes", "ds_configs") <= installed
    assert {name.removeprefix("rlhf/") for name in tracked("rlhf")} <= installed
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked() if not name.startswith(".")} <= packed


def test_the_package_is_the_installed_one_and_has_its_version(rlhf: Path, here: Path) -> None:
    says = "import rlhf, rlhf.shipped; print(rlhf.__version__, rlhf.__file__, rlhf.shipped.RECIPES)"
    version, file, recipes = run(rlhf.with_name("python"), "-c", says, cwd=here).split()
    assert Path(file).is_relative_to(rlhf.parents[1]) and Path(recipes) == Path(file).parent / "recipes"
    assert f"rlhf-{version}.dist-info" in os.listdir(Path(file).parents[1])


def test_recipes_are_listed_and_found(rlhf: Path, here: Path) -> None:
    listed = run(rlhf, "recipe", "list", cwd=here)
    assert "PPO against two reward models" in listed and "temperature_sweep" in listed and "llama2_13b" in listed
    assert "--ppo.beta" in run(rlhf, "recipe", "run", "ppo", "--help", cwd=here)
    found = Path(run(rlhf, "recipe", "path", "ds_configs/accelerate_zero3", cwd=here).strip())
    assert found.is_file() and found.is_relative_to(rlhf.parents[1])


def test_settings_are_copied(rlhf: Path, here: Path) -> None:
    run(rlhf, "recipe", "copy", "llama2_13b/ppo", "my_ppo.yaml", cwd=here)
    source = ROOT / "recipes" / "configs" / "llama2_13b" / "ppo.yaml"
    assert (here / "my_ppo.yaml").read_text() == source.read_text()


def test_a_recipe_trains_a_tiny_model(rlhf: Path, here: Path, tiny_policy_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello you"}]}
    (here / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = ["--policy", tiny_policy_path, "--data", "rows.jsonl", "--output", "sft"]
    run(rlhf, "recipe", "run", "sft", *options, cwd=here)
    assert (here / "sft" / "checkpoint" / "model.safetensors").is_file()


def test_shipped_paths_in_shipped_settings_are_found(rlhf: Path, here: Path) -> None:
    """The demo's plan names its settings' folder as it stands in a checkout."""
    run(rlhf, "recipe", "copy", "embedded/iterative_rlhf", "demo.yaml", cwd=here)
    planned = run(rlhf, "plan", "--config", "demo.yaml", "--commands", cwd=here)
    assert "v3/ppo" in planned and str(rlhf.parents[1]) in planned


def test_a_run_of_ones_own_is_written_and_planned(rlhf: Path, here: Path, tiny_policy_path: Path) -> None:
    rows = [{"prompt": f"what is {n}", "chosen": "it is a river", "rejected": "no"} for n in range(40)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(rlhf, "new", "mine", "--chat", tiny_policy_path, "--preferences", "pairs.jsonl", cwd=here)
    planned = run(rlhf, "plan", "mine", "--commands", cwd=here)
    recipe = rlhf.parents[1] / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    assert str(recipe / "rlhf" / "recipes" / "rejection_sampling.py") in planned
