"""recipes/collect_preferences.py: whose pairs go where."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from rlhf.conversation import Conversation
from rlhf.data.jsonl import write_rows
from rlhf.data.rows import Domain, Preference
from rlhf.sampling.protocol import SamplingParams

ROOT = Path(__file__).resolve().parents[2]


class Annotator:
    """Chooses the first answer; the pair's number is its id."""

    def __init__(self, world: Path, seed: int) -> None:
        self.asked = 0

    def compare(self, messages: Conversation, a: str, b: str, domain: Domain) -> Preference:
        self.asked += 1
        return Preference(str(self.asked), messages, f"a {a}", f"b {b}", domain=domain)


def test_pairs_follow_their_prompts_where_two_files_have_one_name(
    tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    spec = importlib.util.spec_from_file_location("collect_recipe", ROOT / "recipes" / "collect_preferences.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "collect_recipe", recipe)
    spec.loader.exec_module(recipe)
    for part, texts in (("train", ["one", "two"]), ("test", ["three"])):
        write_rows(tmp_path / part / "prompts.jsonl", ({"prompt": text} for text in texts))  # ids prompts:1, prompts:2
    recipe.main(
        recipe.CollectPreferencesConfig(
            output=tmp_path / "out",
            policy=tiny_policy_path,
            prompts=str(tmp_path / "train" / "prompts.jsonl"),
            test_prompts=str(tmp_path / "test" / "prompts.jsonl"),
            world=tmp_path,
            annotator="test_collect_preferences:Annotator",
            pairs_per_prompt=2,
            sampling=SamplingParams(max_new_tokens=4),
        )
    )
    asked = {
        part: [
            json.loads(line)["messages"][0]["content"]
            for line in (tmp_path / "out" / f"preferences_{part}.jsonl").read_text().splitlines()
        ]
        for part in ("train", "test")
    }
    assert asked == {"train": ["one", "one", "two", "two"], "test": ["three", "three"]}
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["left_out"] == 0
