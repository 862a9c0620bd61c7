from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.data.rows import Completion, Prompt
from rlhf.errors import InputError
from rlhf.iteration.pool import completions_of, read_pool, rescore, select_best, write_completions
from rlhf.iteration.selection import selection_figures
from rlhf.sampling.protocol import Sample
from rlhf.training.accelerator import make_accelerator


def completion(prompt: str, version: str, index: int, reward: float, **fields: object) -> Completion:
    row = Completion(
        prompt_id=prompt,
        version=version,
        index=index,
        text=f"answer {version} {index} é",
        token_ids=(5, 6, index),
        logprob=-1.5,
        temperature=1.25,
        finished=True,
        helpfulness=0.25,
        safety=-0.5,
        reward=reward,
        reward_model="judges",
    )
    return replace(row, **fields)  # type: ignore[arg-type]


def test_completions_come_back_as_written_oldest_version_first(tmp_path: Path) -> None:
    rows = {v: [completion("p", v, i, i / 4) for i in range(3)] for v in ("v1", "v2", "v10")}
    rows["v2"].append(completion("p", "v2", 3, 0.0, token_ids=(), text="", finished=False))
    for version in ("v10", "v2", "v1"):
        write_completions(tmp_path / "pool" / f"{version}.parquet", rows[version])
    assert read_pool(tmp_path / "pool") == rows["v1"] + rows["v2"] + rows["v10"]
    assert read_pool(tmp_path / "pool", ["v10", "v1"]) == rows["v10"] + rows["v1"]


def test_a_pool_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no <version>"):
        read_pool(tmp_path)
    write_completions(tmp_path / "v1.parquet", [completion("p", "v1", 0, 1.0)])
    with pytest.raises(InputError, match="has no version 'v2', only v1"):
        read_pool(tmp_path, ["v2"])
    (tmp_path / "v2.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"v2\.parquet: not a readable Parquet file"):
        read_pool(tmp_path)
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"prompt_id": ["p"]}), tmp_path / "v2.parquet")
    with pytest.raises(InputError, match=r"v2\.parquet: .* no column 'version'"):
        read_pool(tmp_path)


def test_the_best_finished_answer_of_each_prompt_wins() -> None:
    rows = [
        completion("b", "v1", 0, 0.1),
        completion("a", "v1", 0, 0.9, finished=False),
        completion("a", "v1", 1, 0.3),
        completion("a", "v1", 2, 0.5, text=" "),
        completion("none", "v1", 0, 0.5, finished=False),
        completion("b", "v2", 0, -0.2),
    ]
    assert select_best(rows) == [rows[0], rows[2]]


def test_ties_go_to_the_newer_version_then_to_the_lower_index() -> None:
    rows = [completion("a", v, i, 0.5) for v in ("v9", "v10") for i in (1, 0)]
    assert [(row.version, row.index) for row in select_best(rows, top=3)] == [("v10", 0), ("v10", 1), ("v9", 0)]


def test_the_same_text_is_chosen_once() -> None:
    rows = [
        completion("a", "v1", i, reward, text=text) for i, (reward, text) in enumerate([(1, "x"), (2, "x"), (0, "y")])
    ]
    assert [row.index for row in select_best(rows, top=2)] == [1, 2]


def test_the_pool_is_rescored_with_the_models_of_today() -> None:
    """Earlier scores count for nothing; an empty answer gets the lowest scores of the others and cannot win."""
    prompts = {
        "h": Prompt("h", [{"role": "user", "content": "how"}]),
        "s": Prompt("s", [{"role": "user", "content": "bad"}], domain="safety"),
    }
    sample = Sample("longer answer", (7, 8), -2.0, True)
    samples = [[sample, Sample("", (1,), -3.0, True)], [sample]]
    drawn = completions_of([prompts["h"], prompts["s"]], samples, "v2", 1.1)
    assert [(row.prompt_id, row.index, row.logprob, row.temperature) for row in drawn] == [
        ("h", 0, -2.0, 1.1),
        ("h", 1, -3.0, 1.1),
        ("s", 0, -2.0, 1.1),
    ]
    earlier = [completion("h", "v1", 0, 99.0, text="short"), completion("s", "v1", 0, 99.0, text="no")]

    def length(conversations: list) -> torch.Tensor:
        return torch.tensor([float(len(c[-1]["content"])) for c in conversations])

    def brevity(conversations: list) -> torch.Tensor:
        return 10 - length(conversations)

    rows, used_safety = rescore(earlier + drawn, prompts, length, brevity, make_accelerator(), "new")
    assert [row.reward for row in rows] == [5.0, 8.0, -3.0, -3.0, -3.0]
    assert [row.helpfulness for row in rows] == [5.0, 2.0, 13.0, 2.0, 13.0]
    assert [row.safety for row in rows] == [5.0, 8.0, -3.0, -3.0, -3.0]
    assert used_safety.tolist() == [False, True, True, False, True]
    assert {row.reward_model for row in rows} == {"new"}
    assert [(row.prompt_id, row.version) for row in select_best(rows)] == [("h", "v1"), ("s", "v1")]


def test_selection_figures() -> None:
    earlier = [completion("a", "v1", 0, 9.0)]
    rewards = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 8.0]
    drawn = [completion("ab"[i // 4], "v2", i % 4, reward, finished=i < 4) for i, reward in enumerate(rewards)]
    used_safety = torch.tensor([True] * 2 + [False] * 6)
    candidates = earlier + drawn
    figures = selection_figures(drawn, 4, used_safety, candidates, select_best(candidates))
    assert (figures["mean_reward"], figures["median_reward"], figures["max_reward"]) == (2.25, 1.25, 6.0)
    assert [(point["k"], point["max"]) for point in figures["curve"]] == [
        (1, 2.25),
        (2, pytest.approx((20 / 6 + 4) / 2)),
        (4, 6.0),
    ]
    assert figures["curve"][1]["kl_bound"] == pytest.approx(0.193147, abs=1e-6)
    assert (figures["gated_share"], figures["finished_share"], figures["mean_length"]) == (0.25, 0.5, 3.0)
    assert (figures["selected"], figures["selected_by_version"]) == (1, {"v1": 1})
    assert (figures["prompts"], figures["prompts_without_answer"]) == (2, 1)
