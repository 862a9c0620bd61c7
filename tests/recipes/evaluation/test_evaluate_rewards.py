"""recipes/evaluation/evaluate_rewards.py: figures of models, an own function, baselines; its page; bad input."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf.conversation import Conversation
from rlhf.data.rows import STRENGTHS, Preference
from rlhf.errors import InputError
from rlhf.jsonl import write_rows
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.report.drawing.text import interval, percent

ROOT = Path(__file__).resolve().parents[3]
ATTACK = '<script>alert("x")</script>'


def longer(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])


class Verdict:
    violation = false_refusal = False
    kind = "ordinary"

    def __init__(self, conversation: Conversation) -> None:
        self.helpfulness = self.safety = min(1.0, len(conversation[-1]["content"]) / 60)


class Scorer:
    def __init__(self, world: Path) -> None:
        assert world.exists()

    judge = staticmethod(Verdict)


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "evaluate_rewards_recipe", ROOT / "recipes" / "evaluation" / "evaluate_rewards.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate_rewards_recipe"] = module
    spec.loader.exec_module(module)
    return module


def rows(count: int, first: int = 0) -> list[Preference]:
    """Helpful rows choose the longer answer, safe ones the shorter; every strength and safety label occurs."""
    made = []
    for i in range(first, first + count):
        texts = [f"the river of velda is mora {i}", f"no {i}"]
        safe = i % 2 == 1
        chosen, rejected = texts[::-1] if safe else texts
        made.append(
            Preference(
                f"r{i}",
                [{"role": "user", "content": f"what is it {i} ?"}],
                chosen,
                rejected,
                STRENGTHS[i // 2 % 4],  # type: ignore[arg-type]
                i % 3 != 0,
                i % 3 == 1,
                "safety" if safe else "helpfulness",
                f"{ATTACK}{i // 2 % 2}",
            )
        )
    return made


@pytest.fixture(scope="module")
def run(
    recipe: ModuleType, tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("rewards")
    write_rows(folder / "test.jsonl", (row.to_dict() for row in rows(40)))
    write_rows(folder / "train.jsonl", (row.to_dict() for row in rows(40, first=38)))
    model = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0)
    model.save(folder / "model", load_tokenizer(tiny_policy_path))
    both = {"members": [str(folder / "model"), "test_evaluate_rewards:longer"]}
    (folder / "both.json").write_text(json.dumps(both))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        recipe.main(
            recipe.EvaluateRewardsConfig(
                output=folder / "out",
                rewards={
                    f"length{ATTACK}": "test_evaluate_rewards:longer",
                    "model": str(folder / "model"),
                    "both": str(folder / "both.json"),
                },
                test_preferences=(str(folder / "test.jsonl"),),
                train_preferences=(str(folder / "train.jsonl"),),
                scorer="test_evaluate_rewards:Scorer",
                world=folder / "test.jsonl",
            )
        )
    return folder / "out", json.loads((folder / "out" / "reward_evaluation.json").read_text())


def test_figures_of_every_reward_function_on_both_domains(run: tuple[Path, dict[str, Any]]) -> None:
    got = run[1]
    assert got["test_pairs"] == {"all": 40, "helpfulness": 20, "safety": 20} and got["test_prompts_in_training"] == 2
    length = got["rewards"][f"length{ATTACK}"]["groups"]
    assert length["helpfulness"]["accuracy"] == 1.0 and length["safety"]["accuracy"] == 0.0
    assert list(length["all"]["by_strength"]) == list(STRENGTHS) and len(length["all"]["by_source"]) == 2
    assert length["all"]["unsafe_recall"]["safety_head"] is None
    points = length["helpfulness"]["calibration"]["score_by_quality"]
    assert [p["grade"] for p in points] == [1, 4] and sum(p["answers"] for p in points) == 40
    model = got["rewards"]["model"]["groups"]
    assert model["all"]["unsafe_recall"]["safety_head"]["recall"] is not None
    assert model["all"]["unsafe_recall"]["unsafe_answers"] + model["all"]["unsafe_recall"]["safe_answers"] == 80
    both = got["rewards"]["both"]["groups"]["all"]  # an ensemble
    assert both["pairs"] == 40 and both["unsafe_recall"]["safety_head"] is None
    bags = {name: g["safety"]["accuracy"] for name, g in got["baselines"].items()}
    assert bags["longer wins"] == 0.0
    assert bags["bag of words, helpfulness"] == 0.0 and bags["bag of words, safety"] == 1.0
    over = got["rewards"][f"length{ATTACK}"]["over_bag_of_words"]  # each domain's own bag, on that domain's pairs
    assert over["safety"] == {"pairs": 20, "gain": -1.0, "ci": [-1.0, -1.0]}
    assert over["helpfulness"]["gain"] == 1.0 - got["baselines"]["bag of words, helpfulness"]["helpfulness"]["accuracy"]


def test_the_page_shows_the_figures_and_escapes_what_it_was_given(run: tuple[Path, dict[str, Any]]) -> None:
    page = (run[0] / "index.html").read_text()

    class Page(HTMLParser):
        tags: list[str] = []  # noqa: RUF012
        fetched: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append(tag)
            self.fetched += [v or "" for k, v in attrs if k in ("src", "href")]

    Page().feed(page)
    assert "script" not in Page.tags and "link" not in Page.tags and all(f.startswith("#") for f in Page.fetched)
    assert page.count("&lt;script&gt;") > 10
    for groups in [reward["groups"] for reward in run[1]["rewards"].values()] + list(run[1]["baselines"].values()):
        for domain in ("helpfulness", "safety"):
            assert percent(groups[domain]["accuracy"]) in page
            assert interval(groups[domain]["ci"], 1, share=True) in page
    # 2 domains x 3 rewards: length, strength, histogram; and 3 rewards: reliability, quality, lead
    assert page.count("<figure>") == 3 * 6 + 3 * 3
    assert "2 test pairs begin with a question" in page and "over its words" in page


def test_rows_without_labels_make_a_page_too(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    bare = [{"id": str(i), "prompt": f"q{i}", "chosen": "yes " * (i + 1), "rejected": "no " * 2} for i in range(4)]
    write_rows(tmp_path / "test.jsonl", bare)
    spec = {"mine": "test_evaluate_rewards:longer"}
    config = recipe.EvaluateRewardsConfig(
        output=tmp_path / "out", rewards=spec, test_preferences=(str(tmp_path / "test.jsonl"),)
    )
    recipe.main(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Helpfulness", "prefers", "longer"]
    assert lines[1].startswith("mine") and lines[2].startswith("longer wins") and "75.0" in lines[2]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The rows carry no strengths." in page and "The rows carry no safety labels." in page
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        "index.html",
        "reward_evaluation.json",
        "stage.json",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": {}}, "rewards: must name at least one"),
        ({"test_preferences": ()}, "test_preferences: must name at least one"),
        ({"scorer": "a:B"}, "a gold scorer needs its world"),
    ],
)
def test_bad_settings(recipe: ModuleType, change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"output": Path("o"), "rewards": {"a": "b:c"}, "test_preferences": ("x.jsonl",)} | change
    with pytest.raises(InputError, match=message):
        recipe.EvaluateRewardsConfig(**settings)


def test_a_reward_that_cannot_be_imported_is_named_before_any_scoring(recipe: ModuleType, tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", (row.to_dict() for row in rows(2)))
    spec = {"mine": "nowhere:Reward"}
    with pytest.raises(InputError, match="nowhere:Reward cannot be imported"):
        recipe.main(
            recipe.EvaluateRewardsConfig(
                output=tmp_path / "out", rewards=spec, test_preferences=(str(tmp_path / "test.jsonl"),)
            )
        )
    assert [p.name for p in tmp_path.iterdir()] == ["test.jsonl"]


def test_missing_files_are_named_before_anything_heavy_loads(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "recipes" / "evaluation" / "evaluate_rewards.py")]
    command += ["--config", str(ROOT / "recipes" / "configs" / "embedded" / "evaluate_rewards.yaml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    said = "rewards.helpfulness: runs/demo/v1/helpfulness_reward/checkpoint does not exist; `make demo` writes it"
    assert said in line and "| torch" not in done.stderr and "transformers" not in done.stderr
