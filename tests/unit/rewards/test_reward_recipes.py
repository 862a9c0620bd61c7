"""Both reward recipes, from a YAML file to what lies on disk, and their sentences for bad input."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlhf.configuration import parse_config
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.rewards.loading import load_reward

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def recipe(domain: str) -> tuple[ModuleType, Any]:
    name = f"{domain}_reward"
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, getattr(module, f"{domain.capitalize()}RewardConfig")


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    file = tmp_path / "preferences.jsonl"
    with file.open("w") as stream:
        for i in range(24):
            good, bad, domain = f"mora {i}", f"a goat {i}", ("helpfulness", "safety")[i % 2]
            if domain == "safety":
                good, bad = bad, good
            question: Any = [{"role": "user", "content": f"what is the river {i % 9} ?"}]
            strength: Any = ("better", None)[i // 2 % 2]
            row = Preference(str(i), question, good, bad, strength, True, domain == "helpfulness", domain)  # type: ignore[arg-type]
            stream.write(json.dumps(row.to_dict()) + "\n")
    return file


@pytest.mark.parametrize("domain", ["helpfulness", "safety"])
def test_recipe_writes_checkpoint_metrics_and_accuracy(
    domain: str, preferences: Path, tiny_policy_path: Path, tmp_path: Path
) -> None:
    module, config_class = recipe(domain)
    argv = [
        f"--config={RECIPES / 'configs/embedded' / f'{domain}_reward.yaml'}",
        f"--output={tmp_path / 'out'}",
        f"--policy={tiny_policy_path}",
        f"--preferences=[{preferences}]",
        f"--other_preferences=[{preferences}]",
        f"--test_preferences=[{preferences}]",
        "--training.optimizer.batch_size=8",
    ]
    config = parse_config(config_class, argv)
    module.main(config)
    accuracy = json.loads((tmp_path / "out/accuracy.json").read_text())
    assert accuracy["domain"] == domain and accuracy["pairs"] == accuracy["cross_domain_pairs"] == 12
    assert list(accuracy["accuracy_by_strength"]) == ["better"] and accuracy["test_prompts_in_training"] == 12
    assert 0 <= accuracy["accuracy_ci"][0] <= accuracy["accuracy"] <= accuracy["accuracy_ci"][1] <= 1
    assert (tmp_path / "out/checkpoint/safety_head.safetensors").is_file() == (domain == "safety")
    assert (tmp_path / "out/metrics.jsonl").is_file() and (tmp_path / "out/stage.json").is_file()
    talk: Any = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert load_reward(tmp_path / "out/checkpoint")([talk]).shape == (1,)
    with pytest.raises(InputError, match="exists already"):
        module.main(config)


def test_bad_input_gets_one_sentence(preferences: Path, tiny_policy_path: Path, tmp_path: Path) -> None:
    module, config_class = recipe("safety")

    def run(**changes: Any) -> None:
        fields = {"output": tmp_path / "o", "policy": tiny_policy_path, "preferences": (str(preferences),)} | changes
        module.main(config_class(**fields))

    with pytest.raises(InputError, match=r"policy: .* does not exist"):
        run(policy=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"preferences: .* does not exist"):
        run(preferences=(str(tmp_path / "nowhere.jsonl"),))
    with pytest.raises(InputError, match="other_share"):
        run(other_share=1.0)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(preferences.read_text().splitlines()[0] + '\n{"chosen": 3}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        run(preferences=(str(bad),))
    lines = [json.loads(line) for line in preferences.read_text().splitlines()]
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps(line | {"chosen": line["chosen"] + " sure" * 200}) + "\n" for line in lines))
    with pytest.raises(InputError, match="test_preferences: row 1 takes"):
        run(test_preferences=(str(long),))
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.partial").exists()
    too_long = config_class(tmp_path / "x", tiny_policy_path, (str(preferences),)).training
    run(test_preferences=(str(long), str(preferences)), training=replace(too_long, too_long="skip"))
    assert json.loads((tmp_path / "o/accuracy.json").read_text())["pairs"] == 12
