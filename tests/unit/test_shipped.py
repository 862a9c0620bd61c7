"""The recipes and settings that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlhf
from rlhf.cli import main
from rlhf.errors import InputError
from rlhf.shipped import RECIPES, copy_settings, existing_recipe, existing_settings, recipe_names, settings, shipped

ROOT = Path(__file__).resolve().parents[2]


def test_every_recipe_has_a_first_line() -> None:
    names = recipe_names()
    assert set(names) == {file.stem for file in RECIPES.rglob("*.py")}
    assert all(names.values())


def test_recipes_are_found_in_every_folder() -> None:
    assert existing_recipe("ppo") == RECIPES / "ppo.py"
    assert existing_recipe("gate_sweep.py") == RECIPES / "studies" / "gate_sweep.py"
    with pytest.raises(InputError, match=r"none called 'pppo'; did you mean ppo( or \w+)*\?$"):
        existing_recipe("pppo")
    with pytest.raises(InputError, match=r"none called 'xyz'; `rlhf recipe list` names all$"):
        existing_recipe("xyz")
    with pytest.raises(InputError, match="none called '\\*'"):
        existing_recipe("*")  # no pattern


def test_settings_are_all_yaml_files() -> None:
    files = {*(RECIPES / "configs").rglob("*.yaml"), *(ROOT / "ds_configs").glob("*.yaml")}
    assert set(settings().values()) == files
    assert existing_settings("qwen3_0.6b/ppo").name == "ppo.yaml"  # the dot is no suffix
    assert existing_settings("ds_configs/accelerate_zero3.yaml").parent.name == "ds_configs"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("llama2_70b/dpo", "there are llama2_70b/evaluate, .*llama2_70b/ppo_zero3"),
        ("llama/ppo", "name one as folder/recipe; the folders are .*embedded, .*llama2_13b"),
        ("ppo", "name one as folder/recipe; the folders are "),
    ],
)
def test_a_wrong_name_is_answered_by_the_right_ones(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        copy_settings(name, tmp_path / "mine.yaml")
    assert not list(tmp_path.iterdir())


def test_settings_are_copied_and_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe", "copy", "embedded/ppo", str(tmp_path)])
    copied = tmp_path / "ppo.yaml"
    assert capsys.readouterr().out.startswith(f"{copied}: its first lines")
    assert copied.read_text() == (RECIPES / "configs" / "embedded" / "ppo.yaml").read_text()
    copied.write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(["recipe", "copy", "embedded/ppo", str(copied)])
    assert end.value.code == 2 and copied.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(InputError, match="there is no folder"):
        copy_settings("embedded/ppo", tmp_path / "none" / "ppo.yaml")


def test_what_follows_a_recipe_s_name_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, words: started.append([program, *words]))
    main(["recipe", "run", "ppo", "--help", "--config", "x.yaml", "--ppo.beta", "0.1"])
    ((program, python, file, *options),) = started
    assert program == python and Path(file) == RECIPES / "ppo.py"
    assert options == ["--help", "--config", "x.yaml", "--ppo.beta", "0.1"]


def test_a_shipped_path_is_found_from_any_folder_and_all_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped("recipes/configs/embedded") == str(RECIPES / "configs" / "embedded")
    assert shipped(Path("ds_configs/accelerate_zero2.yaml")).is_file()
    for name in ("http://server//v1", "recipes/configs/none.yaml", "recipes/ppo.py", "rlhf"):
        assert shipped(name) == name
    (tmp_path / "ds_configs").mkdir()
    assert shipped("ds_configs/") == "ds_configs/"


def test_the_version_is_one_word() -> None:
    assert rlhf.__version__.count(".") == 2
