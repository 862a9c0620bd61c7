"""recipes/data/collect_preferences.py: whose pairs go where, and what a kill leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import Store
from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.jsonl import read_rows, write_rows
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import PolicySource

ROOT = Path(__file__).resolve().parents[3]


class Annotator:
    """Chooses the first answer; stops (as if killed) at the pair whose number is `stop`; keeps a log of its pairs."""

    name = "first"

    def __init__(self, log: str, seed: int, stop: int = -1) -> None:
        self.log, self.stop = Path(log), stop

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        for number, pair in enumerate(pairs):
            if number == self.stop:
                os.kill(os.getpid(), signal.SIGKILL)
            with self.log.open("a") as stream:
                stream.write(pair.id + "\n")
            yield Judgement(pair.id, self.name, "a", "better", True, number % 2 == 0)


class Shy(Annotator):
    """Judges all but the last two pairs."""

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        yield from list(super().judge(pairs))[:-2]


class Broken(Annotator):
    """Raises where it should judge."""

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        raise KeyError("no such pair")


class Undecided(Annotator):
    """Skips every pair."""

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        for pair in pairs:
            yield Judgement(pair.id, self.name, None, skipped="cannot tell")


def shortness(conversations: list[Any]) -> torch.Tensor:
    """A reward: the fewer characters the better."""
    return torch.tensor([-float(len(conversation[-1]["content"])) for conversation in conversations])


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    spec = importlib.util.spec_from_file_location(
        "collect_recipe", ROOT / "recipes" / "data" / "collect_preferences.py"
    )
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "collect_recipe", recipe)
    spec.loader.exec_module(recipe)
    return recipe


@pytest.fixture
def options(tiny_policy_path: Path, tmp_path: Path) -> dict[str, Any]:
    for part, texts in (("train", ["one", "two"]), ("test", ["three"])):
        write_rows(tmp_path / part / "prompts.jsonl", ({"prompt": text} for text in texts))  # ids prompts:1, prompts:2
    return {
        "output": tmp_path / "out",
        "policy": PolicySource(checkpoint=tiny_policy_path),
        "prompts": str(tmp_path / "train" / "prompts.jsonl"),
        "test_prompts": str(tmp_path / "test" / "prompts.jsonl"),
        "annotator": "test_collect_preferences:Annotator",
        "annotator_options": {"log": str(tmp_path / "log")},
        "pairs_per_prompt": 2,
        "sampling": SamplingParams(max_new_tokens=4),
    }


def collect(recipe: ModuleType, options: dict[str, Any]) -> None:
    recipe.main(recipe.CollectPreferencesConfig(**options))


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {part: [row for _, row in read_rows(folder / f"preferences_{part}.jsonl")] for part in ("train", "test")}


def test_pairs_follow_their_prompts_where_two_files_have_one_name(recipe: ModuleType, options: dict[str, Any]) -> None:
    collect(recipe, options)
    found = rows(options["output"])
    asked = {part: [row["messages"][0]["content"] for row in some] for part, some in found.items()}
    assert asked == {"train": ["one", "one", "two", "two"], "test": ["three", "three"]}
    closing = json.loads((options["output"] / "stage.json").read_text())["closing"]
    assert closing["suspicious"] == ["100% of the answers are cut off; raise sampling.max_new_tokens"]
    statistics = json.loads((options["output"] / "statistics.json").read_text())
    assert statistics["left_out"] == statistics["batch"]["nothing_to_compare"] == 0
    assert statistics["batch"]["safety"] == {"chosen_safe_only": 0.5, "both_safe": 0.5, "both_unsafe": 0.0}
    assert statistics["batch"]["annotators"] == {"first": {"judgements": 6, "skipped": 0, "median_seconds": None}}


def test_a_prompt_without_room_goes_by_too_long(
    recipe: ModuleType, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    long = "two " * 300
    write_rows(Path(options["prompts"]), ({"prompt": text} for text in ("one", long)))
    collect(recipe, options)
    assert [row["messages"][0]["content"] for row in rows(options["output"])["train"]] == ["one", "one", long, long]
    assert "1 of 2 prompts leave no room for 4 new tokens" in capsys.readouterr().err
    collect(recipe, options | {"too_long": "skip", "output": options["output"].with_name("skipped")})
    kept = rows(options["output"].with_name("skipped"))
    assert [row["messages"][0]["content"] for row in kept["train"]] == ["one", "one"] and len(kept["test"]) == 2
    with pytest.raises(InputError, match=r"1 of 2 prompts leave no room .*; leave them out"):
        collect(recipe, options | {"too_long": "refuse", "output": options["output"].with_name("refused")})


def test_a_reward_judges_in_a_person_s_place(recipe: ModuleType, options: dict[str, Any]) -> None:
    collect(
        recipe, options | {"annotator": "proxy", "annotator_options": {"reward": "test_collect_preferences:shortness"}}
    )
    found = rows(options["output"])
    statistics = json.loads((options["output"] / "statistics.json").read_text())
    assert set(statistics["batch"]["annotators"]) == {"proxy"}
    for row in (row for part in found.values() for row in part):
        assert len(row["chosen"]) < len(row["rejected"])


def test_killed_it_goes_on_and_nothing_doubles(recipe: ModuleType, options: dict[str, Any], tmp_path: Path) -> None:
    """The annotator kills the recipe at its fourth pair; the second start has but three left."""
    options |= {"annotator_options": json.dumps({"log": str(tmp_path / "log"), "stop": 3})}
    options |= {"labels": tmp_path / "labels.sqlite", "sampling": json.dumps({"max_new_tokens": 4})}
    options |= {"policy": options["policy"].folder}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "recipes/data/collect_preferences.py", *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == -signal.SIGKILL
    with Store(options["labels"]) as store:
        assert store.progress().kept == 3
    drawn = (tmp_path / "out.partial" / "samples" / "pairs.jsonl").read_text()
    recipe.main(parse_config(recipe.CollectPreferencesConfig, words))
    with Store(options["labels"]) as store:
        assert store.progress().kept == 6
    ids = [json.loads(line)["id"] for line in drawn.splitlines()]
    assert (tmp_path / "log").read_text().split() == ids, "every pair was judged once, in the order of the draws"
    found = rows(options["output"])
    assert [row["id"] for part in ("train", "test") for row in found[part]] == ids


def test_a_batch_in_which_nobody_chose_is_refused(recipe: ModuleType, options: dict[str, Any]) -> None:
    options["annotator"] = "test_collect_preferences:Undecided"
    with pytest.raises(InputError, match="Undecided chose an answer in none of the pairs to train on"):
        collect(recipe, options)
    assert not options["output"].exists() and not list(options["output"].parent.glob("out.partial/preferences_*"))


def test_an_annotator_that_raises_is_named_with_its_line(recipe: ModuleType, options: dict[str, Any]) -> None:
    options["annotator"] = "test_collect_preferences:Broken"
    said = r"annotator: .*:Broken fails \(KeyError: 'no such pair', .*test_collect_preferences.py:\d+\)"
    with pytest.raises(InputError, match=said):
        collect(recipe, options)


def test_an_unfinished_batch_is_said_and_what_there_is_stays(
    recipe: ModuleType, options: dict[str, Any], tmp_path: Path
) -> None:
    options["annotator"] = "test_collect_preferences:Shy"
    with pytest.raises(InputError, match=r"2 of 6 pairs still want a judgement; .*out\.labels\.sqlite"):
        collect(recipe, options)
    with pytest.raises(InputError, match="2 of 6 pairs"):
        collect(recipe, options)
    assert len((tmp_path / "log").read_text().split()) == 6 + 2, "the second time it was asked about two"


def test_another_annotator_starts_anew(recipe: ModuleType, options: dict[str, Any], tmp_path: Path) -> None:
    options["annotator"] = "test_collect_preferences:Shy"
    with pytest.raises(InputError, match="2 of 6 pairs"):
        collect(recipe, options)
    collect(recipe, options | {"annotator": "test_collect_preferences:Annotator"})
    with Store(tmp_path / "out.labels.sqlite") as store:
        ours, old = store.batches()[::-1]
        assert store.progress(ours).kept == 6 and store.progress(old).kept == 4


def test_without_test_prompts_a_share_is_held_out_by_prompt(
    recipe: ModuleType, options: dict[str, Any], tmp_path: Path
) -> None:
    write_rows(tmp_path / "train" / "prompts.jsonl", ({"prompt": f"question {i}"} for i in range(20)))
    collect(recipe, options | {"test_prompts": None, "held_out": 0.3, "pairs_per_prompt": 1})
    asked = {part: {row["messages"][0]["content"] for row in some} for part, some in rows(options["output"]).items()}
    assert len(asked["train"]) + len(asked["test"]) == 20 and 2 <= len(asked["test"]) <= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotator": "nobody"}, "annotator: must be one of simulated, people, file"),
        ({"annotator": "rlhf.nowhere:Nobody"}, "annotator: rlhf.nowhere:Nobody cannot be imported"),
        ({"annotator": "pathlib:Path", "annotator_options": {}}, "annotator: pathlib:Path is no annotator"),
        ({"annotator_options": {"log": "x", "loud": True}}, "annotator_options: .* takes no loud; it takes log, stop"),
        ({"annotator_options": {}}, "annotator: .* needs log; give it with --annotator_options.log"),
        ({"annotator": "simulated", "annotator_options": {}}, "annotator: simulated needs world; give it with --world"),
        ({"held_out": 1.0}, "held_out: "),
        ({"labels_per_pair": 0}, "labels_per_pair: "),
    ],
)
def test_what_does_not_fit_is_told_before_a_model_loads(
    recipe: ModuleType, options: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        collect(recipe, options | change)
    assert not options["output"].with_name("out.partial").exists()
