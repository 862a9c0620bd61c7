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
from rlhf.metrics import read_metrics
from rlhf.rewards.loading import load_reward
from rlhf.rewards.training.accuracy import HeldoutReport

OTHER = {"helpfulness": "safety", "safety": "helpfulness"}
RECIPES = Path(__file__).resolve().parents[4] / "recipes"


def recipe(domain: str) -> tuple[ModuleType, Any]:
    name = f"{domain}_reward"
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, getattr(module, f"{domain.capitalize()}RewardConfig")


def written(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """The options of a stage in this folder that learns from these rows alone; the first four are held out too."""
    for name, own in (("train", rows), ("test", rows[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    files = f"--preferences=[{folder / 'train.jsonl'}]", f"--test_preferences=[{folder / 'test.jsonl'}]"
    return [f"--output={folder / 'out'}", *files, "--other_share=0"]


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
def test_recipe_writes_checkpoint_metrics_mixture_and_accuracy(
    domain: str, preferences: Path, tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    mixture = json.loads((tmp_path / "out/mixture.json").read_text())
    assert mixture == {
        "cut_off": 0,
        "pairs": 13,  # a tenth of the whole, for helpfulness by the demo's configuration
        "other_share": 1 / 13,
        "own": {"preferences": 12},
        "other": {"preferences": 1},
        "other_available": {"preferences": 12},
        "skipped": {
            "preferences": {str(preferences): {f"of domain {OTHER[domain]}": 12}},
            "other_preferences": {str(preferences): {f"of domain {domain}": 12}},
            "test_preferences": {},
        },
    }
    said = capsys.readouterr().err.splitlines()
    assert "mixture: all 12 own pairs of preferences" in said
    assert "mixture: 1 of 12 other pairs of preferences" in said
    accuracy = json.loads((tmp_path / "out/accuracy.json").read_text())
    assert set(accuracy) == HeldoutReport.__required_keys__
    assert accuracy["domain"] == domain and accuracy["pairs"] == accuracy["cross_domain_pairs"] == 12
    assert list(accuracy["accuracy_by_strength"]) == ["better"] and accuracy["test_prompts_in_training"] == 12
    assert 0 <= accuracy["accuracy_ci"][0] <= accuracy["accuracy"] <= accuracy["accuracy_ci"][1] <= 1
    assert (tmp_path / "out/checkpoint/safety_head.safetensors").is_file() == (domain == "safety")
    assert (tmp_path / "out/metrics.jsonl").is_file() and (tmp_path / "out/stage.json").is_file()
    talk: Any = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert load_reward(tmp_path / "out/checkpoint")([talk]).shape == (1,)
    with pytest.raises(InputError, match="exists already"):
        module.main(config)


def test_pairs_of_cut_answers_are_made_once_and_go_on_after_a_kill(
    tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, config_class = recipe("safety")
    whole = "the river is called mora , and it is long . it ends at the sea , as every river does ."
    rows = [
        Preference(
            str(i), [{"role": "user", "content": f"what is {i} ?"}], whole, "a goat", None, True, False, "safety"
        )
        for i in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    argv = [
        f"--output={tmp_path / 'out'}",
        f"--policy={tiny_policy_path}",
        f"--preferences={tmp_path / 'rows.jsonl'}",
        f"--test_preferences={tmp_path / 'rows.jsonl'}",
        "--training.adapter.r=2",
        "--training.checkpoint_every=1",
        "--training.optimizer.batch_size=4",
    ]

    def run(share: float) -> None:
        module.main(parse_config(config_class, [*argv, f"--cut_off_share={share}"]))

    def fail(*arguments: Any) -> None:
        raise RuntimeError("the machine is gone")

    with monkeypatch.context() as broken:
        broken.setattr("rlhf.rewards.training.stage.record_accuracy", fail)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(0.5)
    with pytest.raises(InputError, match=r"cut_off_share: the training states .* made with 0\.5, now it is 0\.25"):
        run(0.25)
    run(0.5)
    assert "mixture: 4 pairs of a chosen answer and itself cut off" in capsys.readouterr().err
    mixture = json.loads((tmp_path / "out/mixture.json").read_text())
    assert (mixture["pairs"], mixture["cut_off"], mixture["own"]) == (8, 4, {"rows": 8})
    assert len(read_metrics(tmp_path / "out/metrics.jsonl")) == 3
    assert json.loads((tmp_path / "out/accuracy.json").read_text())["cut_off_gain"] is not None


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
    with pytest.raises(InputError, match=r"cut_off_share: must lie in \[0, 1\], got 1\.5"):
        run(cut_off_share=1.5)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(preferences.read_text().splitlines()[0] + '\n{"chosen": 3}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        run(preferences=(str(bad),))
    lines = [json.loads(line) for line in preferences.read_text().splitlines()]
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps(line | {"chosen": line["chosen"] + " sure" * 200}) + "\n" for line in lines))
    defaults = config_class(output=tmp_path / "x", policy=tiny_policy_path, preferences="x").training
    with pytest.raises(InputError, match="test_preferences: row 1 takes"):
        run(test_preferences=(str(long),), training=replace(defaults, too_long="refuse"))
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.partial").exists()
    run(test_preferences=(str(long), str(preferences)))
    assert json.loads((tmp_path / "o/accuracy.json").read_text())["pairs"] == 12
    skipped = json.loads((tmp_path / "o/mixture.json").read_text())["skipped"]["test_preferences"]
    assert skipped == {"long": {"too long": 24}}


def test_what_was_skipped_is_saved_by_file_and_reason(
    preferences: Path, tiny_policy_path: Path, tmp_path: Path
) -> None:
    module, config_class = recipe("helpfulness")
    lines = [json.loads(line) for line in preferences.read_text().splitlines()]
    own = [line for line in lines if line["domain"] == "helpfulness"]
    own[0] |= {"chosen": own[0]["rejected"]}
    own[1] |= {"chosen": "mora" + " sure" * 200}
    own[2] |= {"rejected": " "}
    own[3] |= {"chosen_safe": False, "rejected_safe": True}
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({**line, "source": "people"}) + "\n" for line in own))
    shp: dict[str, Any] = {"domain": "askbaking_train", "history": "what is mora ?", "labels": 1}
    shp |= {"human_ref_A": "the river .", "human_ref_B": "a goat ."}
    (tmp_path / "shp.jsonl").write_text(json.dumps(shp) + "\n" + json.dumps({**shp, "labels": None}) + "\n")
    config = config_class(
        output=tmp_path / "out",
        policy=tiny_policy_path,
        preferences=str(mine),
        other_preferences=(str(preferences), str(tmp_path / "shp.jsonl")),
        on_bad_row="skip",
    )
    assert config.other_share == 0.5
    module.main(config)
    mixture = json.loads((tmp_path / "out/mixture.json").read_text())
    unsafe = "chosen_safe, rejected_safe: an unsafe answer chosen over a safe one is not trained on; drop the row"
    assert mixture["skipped"] == {
        "preferences": {
            str(mine): {
                "chosen, rejected: the two answers are identical": 1,
                "rejected: must be a non-empty text": 1,
                unsafe: 1,
            },
            "people": {"too long": 1},
        },
        "other_preferences": {
            str(preferences): {"of domain helpfulness": 12},
            str(tmp_path / "shp.jsonl"): {"labels: must be 0 or 1": 1},
        },
        "test_preferences": {},
    }
    assert mixture["own"] == {"people": 8} and mixture["other_available"] == {"preferences": 12, "shp": 1}
    assert sum(mixture["other"].values()) == 8 and mixture["other_share"] == 0.5 and mixture["pairs"] == 16


def test_nothing_short_enough(preferences: Path, tiny_policy_path: Path, tmp_path: Path) -> None:
    module, config_class = recipe("safety")
    training = replace(config_class(output=tmp_path, policy=tmp_path, preferences="x").training, max_length=3)
    with pytest.raises(InputError, match="preferences: every pair of its own domain is too long"):
        fields = {"policy": tiny_policy_path, "preferences": str(preferences), "training": training}
        module.main(config_class(output=tmp_path / "out", **fields))


def test_the_papers_steps_of_512_pairs_on_a_small_set_are_not_all_warm_up(
    tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, config_class = recipe("helpfulness")
    question: Any = [{"role": "user", "content": "what ?"}]
    rows = [Preference(str(i), question, "mora", "goat", domain="helpfulness").to_dict() for i in range(1604)]
    argv = [
        *written(tmp_path, rows),
        f"--policy={tiny_policy_path}",
        "--training.optimizer.micro_batch_size=512",
    ]
    module.main(parse_config(config_class, argv))
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "out/metrics.jsonl")]
    assert len(rates) == 4 and rates == sorted(rates, reverse=True) and rates[0] == 1e-5 and rates[1] < 1e-5
    assert "4 steps are few; 1 warm up, not 5" in capsys.readouterr().err
    closing = json.loads((tmp_path / "out/stage.json").read_text())["closing"]
    assert closing["rows_used"] == 1604 and closing["figures"]["steps"] == 4
    assert not [sentence for sentence in closing["suspicious"] if "warm-up" in sentence]


def test_pairs_of_cut_answers_are_trained_on_and_counted_apart(
    tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, config_class = recipe("safety")
    whole = "The river is called mora, and it is long. It ends at the sea, as every river does here."
    question: Any = [{"role": "user", "content": "what ?"}]
    rows = [Preference(str(i), question, whole, "a goat", domain="safety").to_dict() for i in range(16)]
    argv = [
        *written(tmp_path, rows),
        f"--policy={tiny_policy_path}",
        "--cut_off_share=0.5",
        "--training.optimizer.batch_size=4",
    ]
    module.main(parse_config(config_class, argv))
    mixture = json.loads((tmp_path / "out/mixture.json").read_text())
    assert (mixture["pairs"], mixture["cut_off"], mixture["own"]) == (16, 8, {"train": 16})
    assert "mixture: 8 pairs of a chosen answer and itself cut off" in capsys.readouterr().err
    closing = json.loads((tmp_path / "out/stage.json").read_text())["closing"]
    assert closing["rows_used"] == 24 and closing["figures"]["steps"] == 6
    accuracy = json.loads((tmp_path / "out/accuracy.json").read_text())
    assert accuracy["training_pairs"] == 16 and accuracy["cut_off_gain"] is not None
