"""Checkpoints that nothing reads any more, removed by `keep`: what stays, what is said, what runs again for it."""

from __future__ import annotations

import contextlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from rlhf.configuration import parse_config
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.driver import Driver
from rlhf.iteration.keeping import Best, best_policy
from rlhf.iteration.ledger import read_ledger
from rlhf.iteration.plan import make_plan
from rlhf.iteration.summary import write_summary
from rlhf.stage import digest
from rlhf.start.run import record_config

RECIPE = '''
import json
from dataclasses import dataclass
from rlhf.configuration import run_recipe
from rlhf.stage import InputPath, StageConfig, open_stage

@dataclass(frozen=True, kw_only=True)
class TrainConfig(StageConfig):
    """A training.

    Args:
        policy: checkpoint to start from.
        adapter: writes an adapter over it.
        seed: none is drawn.
    """
    policy: InputPath | None = None
    adapter: bool = False
    seed: int = 0

def main(config: TrainConfig) -> None:
    with open_stage(config).work() as folder:
        before = (config.policy / "weights.txt").read_text() if config.policy else ""
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "weights.txt").write_text(before + "x" * 100)
        if config.adapter:
            (folder / "checkpoint" / "adapter").mkdir()
            settings = {"base_model_name_or_path": str(config.policy)}
            (folder / "checkpoint" / "adapter" / "adapter_config.json").write_text(json.dumps(settings))

if __name__ == "__main__":
    run_recipe(main, TrainConfig)
'''
MEASURE = '''
import json
from dataclasses import dataclass
from rlhf.configuration import run_recipe
from rlhf.stage import InputPath, StageConfig, open_stage

@dataclass(frozen=True, kw_only=True)
class MeasureConfig(StageConfig):
    """An evaluation.

    Args:
        policy: read.
        rate: what comes out.
        seed: none is drawn.
    """
    policy: InputPath
    rate: float = 0.5
    seed: int = 0

def main(config: MeasureConfig) -> None:
    with open_stage(config).work() as folder:
        (config.policy / "weights.txt").read_text()
        figures = {"name": config.output.parent.name, "win_rate_vs_sft": config.rate}
        (folder / "evaluation.json").write_text(json.dumps(figures))

if __name__ == "__main__":
    run_recipe(main, MeasureConfig)
'''


class Run:
    """A start and three versions, each trained and then measured."""

    def __init__(self, here: Path, rates: tuple[float, ...] = (0.5, 0.9, 0.7), **training: Any) -> None:
        self.here, self.folder = here, here / "run"
        for name, text in (("train", RECIPE), ("measure", MEASURE)):
            (here / f"{name}.py").write_text(text)
            (here / f"{name}.yaml").write_text("{}")
        train = {"recipe": str(here / "train.py"), "reads": {"policy": "policy?"}, "makes": {"policy": "checkpoint"}}
        versions = []
        for number, rate in enumerate(rates, start=1):
            (here / f"rate{number}.yaml").write_text(f"rate: {rate}")
            measure = {"recipe": str(here / "measure.py"), "reads": {"policy": "policy"}}
            steps = [{**train, "options": training}, {**measure, "config": str(here / f"rate{number}.yaml")}]
            versions.append({"name": f"v{number}", "steps": steps})
        plan = {
            "run": str(self.folder),
            "configs": str(here),
            "start": [{**train, "name": "sft"}],
            "versions": versions,
        }
        (here / "plan.yaml").write_text(json.dumps(plan))

    def start(self, keep: str) -> set[str]:
        """Run it to its end, every stage from cold; returns the stages that were started."""
        config = parse_config(IterativeConfig, ["--config", str(self.here / "plan.yaml"), "--keep", keep])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            driver = Driver(make_plan(config), config.run, keep=config.keep, warm=False)
            driver.execute(begin=partial(record_config, config))
            write_summary(config.run, make_plan(config))
        self.said = said.getvalue()
        return {line.split()[2] for line in self.said.splitlines() if " started" in line}

    def checkpoints(self) -> set[str]:
        return {str(path.parent.relative_to(self.folder)) for path in self.folder.rglob("checkpoint")}


def test_the_newest_stays_and_what_is_read_again_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    run.start("newest")
    assert run.checkpoints() == {"sft", "v3/train"}, "what the start made stays"
    known = json.loads((run.folder / ".digests.json").read_text())
    start = run.folder / "sft" / "checkpoint"
    assert known["sft/checkpoint"][1] == digest(start), "read by the first stage that needed it, and by no other"
    assert run.said.count("checkpoint removed, 0.0 MB (keep: newest)") == 2
    removed = [r for r in read_ledger(run.folder / "ledger.jsonl") if r["event"] == "removed"]
    assert [(r["stage"], r["names"], r["bytes"]) for r in removed] == [
        ("v1/train", ["checkpoint"], 200),
        ("v2/train", ["checkpoint"], 300),
    ]
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(run.folder)])
    assert ended.value.code == 0 and f"{'v1/train':<24} ok, checkpoint removed (keep)" in capsys.readouterr().out
    assert run.start("newest") == set(), "and is finished"

    (tmp_path / "rate2.yaml").write_text("rate: 0.8")
    main(["plan", "--config", str(tmp_path / "plan.yaml"), "--keep", "newest"])
    lines = [line.split(";")[0] for line in capsys.readouterr().out.splitlines()]  # behind it: how long it takes
    planned = dict(line.split(maxsplit=1) for line in lines if line[0] not in " d")
    assert planned["v2/train"] == "finished, and runs again if what it reads of v1/train comes out another"
    assert planned["v1/train"] == "to run: its checkpoint was removed, and v2/train reads it"
    assert run.start("newest") == {"v1/train", "v2/train", "v2/measure"}, "no more than has to"
    assert run.checkpoints() == {"sft", "v3/train"}


def test_the_best_stays_too_and_all_of_them_until_they_are_asked_to_go(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start("all")
    assert run.checkpoints() == {"sft", "v1/train", "v2/train", "v3/train"}
    assert run.start("best") == set() and run.checkpoints() == {"sft", "v2/train", "v3/train"}
    assert "v1/train" in run.said and "(keep: best)" in run.said
    stages = make_plan(parse_config(IterativeConfig, ["--config", str(tmp_path / "plan.yaml")]))
    best = best_policy(stages, [stage.name for stage in stages])
    assert best == Best(run.folder / "v2" / "train" / "checkpoint", 0.9, None, 3)
    assert best_policy(stages, []) is None


def test_the_base_of_an_adapter_that_stays_stays(tmp_path: Path) -> None:
    run = Run(tmp_path, adapter=True)
    run.start("newest")
    assert run.checkpoints() == {"sft", "v1/train", "v2/train", "v3/train"}


def test_a_word_that_keep_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--config", str(run.here / "plan.yaml"), "--keep", "some"])
    assert ended.value.code == 2 and "keep" in capsys.readouterr().err
