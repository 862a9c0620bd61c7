"""`rlhf new`, `rlhf plan`, `rlhf run`: from a chat checkpoint and a file of preferences to the report."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rlhf.annotation.people import asked_words
from rlhf.cli import main
from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.iteration.checks import _import as import_file
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.ledger import LOCK
from rlhf.iteration.plan import make_plan, recipe_file
from rlhf.stage.card import read_metadata
from rlhf.start.machine import Machine
from rlhf.start.new import Request, new_run

ROOT = Path(__file__).resolve().parents[2]
WORDS = [*"abcdefghijklmnopqrst"]
STAGES = ("rejection_sampling", "ppo", "evaluate")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Sixty pairs over as many questions; the longer answer is chosen."""
    rows = [
        {"prompt": f"{WORDS[i % 20]} {WORDS[i // 20]} {i} ?", "chosen": "sure it is mora .", "rejected": "no"}
        for i in range(60)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rlhf(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.doors
def test_from_a_chat_model_to_the_report(tiny_policy_path: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "others.jsonl").write_text(pairs.read_text().replace("mora", "velda"))
    made = rlhf("new", "mine", "--chat", str(tiny_policy_path), "--preferences", str(pairs),
                "--safety-preferences", str(pairs), "--referee-preferences", "others.jsonl",
                "--versions", "1", folder=tmp_path)  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "LlamaForCausalLM" in made.stdout and "rlhf run mine" in made.stdout
    takes = {line.split()[0]: line for line in made.stdout.splitlines() if line}
    assert "by the calibration" in takes["memory"] and "to be written" in takes["disk"]
    assert "to go, by the calibration" in takes["hours"] and "nothing is known" not in takes["hours"]
    planned = rlhf("plan", "mine", folder=tmp_path)
    assert planned.returncode == 0 and "v1/ppo_evaluation" in planned.stdout, planned.stderr
    assert "hours: " in planned.stdout and "by the calibration" in planned.stdout and "; about " in planned.stdout
    settings = tmp_path / "mine" / "config" / "ppo.yaml"
    small = {"iterations": 1, "batch_size": 8, "evaluate_every": 1, "validation_size": 4}
    content = yaml.safe_load(settings.read_text())
    content["ppo"] |= small | {"optimizer": {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-4}}
    settings.write_text(yaml.safe_dump(content))
    short = ["--launch", "{}", "--slots", "1"]
    done = rlhf("run", "mine", *short, folder=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert [version["name"] for version in summary["versions"]] == ["start", "v1", "v1_ppo"]
    assert {model["domain"] for model in summary["reward_models"]} == {"helpfulness", "safety"}
    assert summary["referee"] and all(version["referee_score"] is not None for version in summary["versions"])
    assert (tmp_path / "mine" / "report" / "index.html").is_file()
    assert " to go" in done.stdout, "time left while it goes"
    assert re.search(r"^best:    mine/v1/\w+/checkpoint: of 2 policies it won most .*%", done.stdout, re.MULTILINE)
    for step, kind in (("ppo", "rlhf-policy"), ("safety_reward", "reward-model")):
        tags = read_metadata(tmp_path / "mine" / "v1" / step / "checkpoint")["tags"]
        assert tags == ["rlhf", kind, step.replace("_", "-")], "every checkpoint has its card"
    again = rlhf("plan", "mine", *short, folder=tmp_path).stdout
    assert "finished; took " in again and "were estimated" in again and "finished stages" in again


@pytest.mark.doors
def test_from_a_base_model_of_the_hub_s_and_dialogues_to_the_first_version(
    tiny_policy_path: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base has no chat template; each version has a file of prompts of its own."""
    repository = tmp_path / "hub" / "models--someone--base"
    shutil.copytree(tiny_policy_path, repository / "snapshots" / "abc", ignore=shutil.ignore_patterns("chat_template*"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    questions = [json.loads(line)["prompt"] for line in pairs.read_text().splitlines()]
    rows = [{"prompt": question, "completion": "it is mora ."} for question in questions]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in (1, 2):
        asked = [{"prompt": f"{number} {question}"} for question in questions[:30]]
        (tmp_path / f"round{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    made = rlhf("new", "mine", "--base", "someone/base", "--sft", "chats.jsonl", "--preferences", str(pairs),
                "--prompts", "round1.jsonl", "round2.jsonl", "--versions", "2", "--no-ppo",
                folder=tmp_path)  # fmt: skip
    assert made.returncode == 0 and "by the calibration" in made.stdout, made.stderr
    settings = tmp_path / "mine" / "config" / "prepare_data.yaml"
    settings.write_text(settings.read_text().replace('rounds: "share"', 'rounds: "files"'))
    done = rlhf("run", "mine", "--launch", "{}", "--slots", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert [version["name"] for version in summary["versions"]] == ["sft", "v1", "v2"]
    for number in (1, 2):
        prompts = (tmp_path / "mine" / "data" / f"prompts_v{number}.jsonl").read_text().splitlines()
        assert prompts and all(json.loads(row)["messages"][0]["content"][:2] == f"{number} " for row in prompts)


def test_several_sources_a_domain_some_of_the_hub_s(
    tiny_policy_path: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step `data` of the written plan reads them all: its preferences are as many as were given."""
    of_hub = [{"prompt": f"hub {i} ?", "chosen": "sure .", "rejected": "no"} for i in range(40)]
    asked = []

    def from_hub(source: str, *name: str) -> Iterator[tuple[int, dict[str, str]]]:
        asked.append(source)
        return enumerate(of_hub, start=1)

    monkeypatch.setattr("rlhf.data.loading._from_datasets", from_hub)
    (tmp_path / "more.jsonl").write_text(pairs.read_text().replace(" ?", " more ?"))
    given = {
        "helpfulness_preferences": (str(pairs), "acme/pairs:train"),
        "safety_preferences": (str(tmp_path / "more.jsonl"),),
        "prompts": ("acme/pairs:train", str(pairs)),
    }
    new_run(Request(tmp_path / "run", tiny_policy_path, versions=2, **given), Machine(2, 24.0))
    stages = make_plan(parse_config(IterativeConfig, ["--config", str(tmp_path / "run" / "plan.yaml")]))
    (stage,) = [stage for stage in stages if stage.name == "data"]
    assert json.loads(stage.overrides["helpfulness_preferences"]) == [str(pairs), "acme/pairs:train"]
    config = check_plan(stages)["data"]
    import_file(recipe_file(stage), stage).main(config)
    rows = [json.loads(line) for part in ("train", "test") for line in
            (stage.output / f"preferences_{part}.jsonl").read_text().splitlines()]  # fmt: skip
    validation = len((stage.output / "validation_prompts.jsonl").read_text().splitlines())
    assert 100 + 60 - 2 * validation <= len(rows) <= 100 + 60, "but what begins like a validation prompt"
    assert {row["domain"] for row in rows if "more" in row["messages"][0]["content"]} == {"safety"}
    assert json.loads((stage.output / "stage.json").read_text())["datasets"] == ["acme/pairs"]
    assert set(asked) == {"acme/pairs:train"}
    prompts = [json.loads(line)["messages"][0]["content"] for n in (1, 2) for line in
               (stage.output / f"prompts_v{n}.jsonl").read_text().splitlines()]  # fmt: skip
    assert len(set(prompts)) == len(prompts) > 60 and any(text.startswith("hub ") for text in prompts)


@pytest.mark.parametrize(
    "machine",
    [
        Machine(2, 24.0),
        Machine(2, 24.0, bfloat16=True),
        Machine(16, 128.0, 1, 80.0, bfloat16=True),
        Machine(64, 512.0, 8, 80.0),
    ],
    ids=["two cores", "two cores with bfloat16", "one GPU", "eight GPUs"],
)
def test_every_written_setting_is_an_option(
    machine: Machine, tiny_policy_path: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"helpfulness_preferences": (str(pairs),), "safety_preferences": (str(pairs),)}
    request = Request(tmp_path / "run", tiny_policy_path, versions=5, **both)
    monkeypatch.setattr("rlhf.start.sizing.TINY", 1.0)  # adapters for the tiny model too
    new_run(request, machine)
    config = parse_config(IterativeConfig, ["--config", str(tmp_path / "run" / "plan.yaml")])
    assert config.slots == machine.slots
    stages = make_plan(config)
    check_plan(stages)
    cpu_that_multiplies_in_it = machine.bfloat16 and not machine.gpus
    asked = {stage.launch.mixed_precision for stage in stages}
    assert asked == ({"bf16"} if cpu_that_multiplies_in_it else {None}), "a GPU's is left to the GPU"
    for file in (tmp_path / "run" / "config").glob("*.yaml"):
        values = [line for line in file.read_text().splitlines() if ": " in line and not line.startswith("#")]
        assert all("  # " in line for line in values), "a reason at every value"


def test_adapters_of_a_small_model_have_one_size_and_compare_answers(
    tiny_policy_path: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also PPO's, where no version before it has made one; and there is no value model to learn."""
    monkeypatch.setattr("rlhf.start.sizing.TINY", 1.0)
    new_run(Request(tmp_path / "run", tiny_policy_path, helpfulness_preferences=(str(pairs),)), Machine(2, 24.0))
    configs = {n: yaml.safe_load((tmp_path / "run" / "config" / f"{n}.yaml").read_text()) for n in STAGES[:2]}
    assert configs["ppo"]["adapter"] == configs["rejection_sampling"]["adapter"] == {"r": 16, "merge": False}
    assert (configs["ppo"]["ppo"]["estimator"], configs["ppo"]["ppo"]["samples_per_prompt"]) == ("rloo", 4)


@pytest.mark.parametrize(("own", "written"), [(None, 0.7), (0.6, 0.6), (1.0, 1.0), (0.2, 0.7)])
def test_one_temperature_for_sampling_ppo_and_evaluation(
    own: float | None, written: float, tiny_policy_path: Path, pairs: Path, tmp_path: Path
) -> None:
    """The model's own, unless all answers to a prompt would be alike at it; evaluated so that the KL is measured."""
    chat = tmp_path / "chat"
    shutil.copytree(tiny_policy_path, chat)
    settings = json.loads((chat / "generation_config.json").read_text())
    named = {} if own is None else {"do_sample": True, "temperature": own}
    (chat / "generation_config.json").write_text(json.dumps(settings | named))
    new_run(Request(tmp_path / "run", chat, helpfulness_preferences=(str(pairs),)), Machine(2, 24.0))
    configs = {n: yaml.safe_load((tmp_path / "run" / "config" / f"{n}.yaml").read_text()) for n in STAGES}
    assert [configs[name]["sampling"]["temperature"] for name in STAGES] == [written] * 3
    assert (
        configs["ppo"]["sampling"].keys() == configs["evaluate"]["sampling"].keys() == {"temperature", "max_new_tokens"}
    )
    why = (tmp_path / "run" / "config" / "ppo.yaml").read_text()
    assert ("its generation_config.json names 0.2" in why) == (own == 0.2)


def test_commands_that_are_said_can_be_pasted(tiny_policy_path: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    given = {"chat": tiny_policy_path, "helpfulness_preferences": (str(pairs),)}
    *_, said = new_run(Request(run, **given), Machine(2, 24.0))  # type: ignore[arg-type]
    assert f"plan '{run}', then " in said and said.endswith(f"run '{run}'")
    with pytest.raises(InputError, match=f"go on with `rlhf run '{run}'`"):
        Request(run, **given)  # type: ignore[arg-type]
    asked = asked_words("v1/preferences", run / "labels.sqlite")
    assert asked.endswith(f"annotate '{run}'")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"helpfulness_preferences": ()}, "preferences: name preferences"),
        ({"helpfulness": "a:b"}, "helpfulness: give a reward or preferences"),
        ({"versions": 0}, "versions: must be at least 1"),
        ({"run": Path(".")}, "exists already"),
        ({"test_prompts": ("nowhere.jsonl",)}, "test_prompts: nowhere.jsonl does not exist"),
        ({"chat": Path("nowhere")}, "nowhere is not a folder"),
    ],
)
def test_bad_requests_write_nothing(
    changes: dict[str, object], words: str, tiny_policy_path: Path, pairs: Path, tmp_path: Path
) -> None:
    given = {"run": tmp_path / "run", "chat": tiny_policy_path, "helpfulness_preferences": (str(pairs),)}
    with pytest.raises(InputError, match=words):
        new_run(Request(**given | changes))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, "lacks the weights model.layers.2"),
        ({"num_hidden_layers": 1}, "has no place for the weights model.layers.1"),
        ({"hidden_act": "spiral"}, "cannot be loaded"),
        ({"intermediate_size": 20}, "cannot be loaded"),
    ],
)
def test_a_model_whose_files_do_not_belong_together_is_refused_before_anything_is_planned(
    changes: dict[str, object], words: str, tiny_policy_path: Path, pairs: Path, tmp_path: Path
) -> None:
    """Before, the run was written, and its first stage failed."""
    chat = Path(shutil.copytree(tiny_policy_path, tmp_path / "chat"))
    config = json.loads((chat / "config.json").read_text())
    (chat / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=words):
        new_run(Request(tmp_path / "run", chat, helpfulness_preferences=(str(pairs),)), Machine(2, 24.0))
    assert not (tmp_path / "run").exists()


def test_a_plan_says_which_stage_is_at_work(tiny_policy_path: Path, pairs: Path, tmp_path: Path) -> None:
    """Before, the stage that a driver was in the middle of was said to have not finished."""
    run = tmp_path / "run"
    new_run(Request(run, tiny_policy_path, helpfulness_preferences=(str(pairs),)), Machine(2, 24.0))
    (run / "ledger.jsonl").write_text(json.dumps({"event": "started", "time": 0.0, "stage": "data", "key": {}}) + "\n")
    with (run / LOCK).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        states = [rlhf("plan", str(run), folder=tmp_path).stdout.splitlines()[0]]
    states.append(rlhf("plan", str(run), folder=tmp_path).stdout.splitlines()[0])
    assert ["at work" in state for state in states] == [True, False] and "did not finish" in states[1], states


def test_a_file_may_have_a_tag_behind_its_name(tiny_policy_path: Path, pairs: Path, tmp_path: Path) -> None:
    """Before, it was looked for with the tag, and refused as not there."""
    asked = Request(tmp_path / "run", tiny_policy_path, (f"{pairs}#safety",), helpfulness_preferences=(str(pairs),))
    new_run(asked, Machine(2, 24.0))
    config = parse_config(IterativeConfig, ["--config", str(tmp_path / "run" / "plan.yaml")])
    settings = check_plan(make_plan(config))
    assert settings["data"].prompts == (f"{pairs}#safety",)


def test_a_plan_that_lies_in_another_folder_than_its_own_is_not_followed_there(
    tiny_policy_path: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before, `rlhf run` of a run's copy, with its changes, made the stages of the run that it was copied from anew."""
    monkeypatch.chdir(tmp_path)
    new_run(Request(Path("run"), tiny_policy_path, helpfulness_preferences=(str(pairs),)), Machine(2, 24.0))
    shutil.copytree("run", "copy")
    for folder, place in (("copy", tmp_path), (".", tmp_path / "run"), ("../run", tmp_path / "copy")):
        monkeypatch.chdir(place)
        with pytest.raises(SystemExit) as left:
            main(["plan", folder])
        assert left.value.code == 2 and "is the plan of run, and would work there" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    os.symlink("run", "link")
    for folder in ("run", "link", str(tmp_path / "run")):
        main(["plan", folder])
    main(["plan", "copy", "--run", "copy"])  # by whoever knows


def test_the_command_s_mistakes_are_one_sentence(tmp_path: Path) -> None:
    for words in (["run"], ["run", "nowhere"], ["plan", "nowhere"], ["new", "x", "--chat", "nowhere", "--reward", "a"]):
        done = rlhf(*words, folder=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
