from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parent))
from made_up import completion

from rlhf.conversation import split_thoughts
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.rejection.pool import (
    completions_of,
    pool_sizes,
    read_completions,
    read_pool,
    rescore,
    write_completions,
)
from rlhf.rejection.selection import SelectionConfig, select
from rlhf.rewards.gate import Gate, GatedReward
from rlhf.sampling.protocol import Sample
from rlhf.training.accelerator import make_accelerator


def test_completions_come_back_as_written_oldest_version_first(tmp_path: Path) -> None:
    rows = {v: [completion("p", v, i, i / 4) for i in range(3)] for v in ("v1", "v2", "v10")}
    rows["v2"].append(completion("p", "v2", 3, 0.0, token_ids=(), text="", finished=False))
    for version in ("v10", "v2", "v1"):
        write_completions(tmp_path / "pool" / f"{version}.parquet", rows[version])
    assert read_pool(tmp_path / "pool") == rows["v1"] + rows["v2"] + rows["v10"]
    assert read_pool(tmp_path / "pool", ["v10", "v1"]) == rows["v10"] + rows["v1"]
    assert read_pool(tmp_path / "pool", top=1) == [rows[v][2] for v in ("v1", "v2", "v10")]
    assert list(pool_sizes(tmp_path / "pool").items()) == [("v1", 3), ("v2", 4), ("v10", 3)]


def test_token_ids_stay_where_they_are_read(tmp_path: Path) -> None:
    """Whoever asks for them gets what was written; as tuples 300 ids of a row take twelve thousand bytes."""
    ids = [tuple(range(1000 * i, 1000 * i + 300 * (i % 3))) for i in range(2000)]
    rows = [completion(f"p{i // 4}", "v1", i % 4, i / 4, token_ids=own) for i, own in enumerate(ids)]
    write_completions(tmp_path / "v1.parquet", rows)
    tracemalloc.start()
    kept = read_pool(tmp_path)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 1000 * len(rows), "what Arrow holds, 1200 bytes a row, is not counted"
    first, second = kept[:2]
    assert [row.token_ids for row in kept] == ids and kept == rows and {*kept[:9]} == {*rows[:9]}
    assert (len(second.token_ids), second.token_ids[-1], second.token_ids[:2]) == (300, 1299, [1000, 1001])
    assert not first.token_ids and first.token_ids != (1,) and second.token_ids != 5
    write_completions(tmp_path / "again.parquet", kept)
    assert read_completions(tmp_path / "again.parquet") == rows


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

    parquet.write_table(pyarrow.table({"prompt_id": ["p"]}), tmp_path / "v2.parquet")
    with pytest.raises(InputError, match=r"v2\.parquet: .* no column 'version'"):
        read_pool(tmp_path)


def test_thoughts_are_kept_to_train_on_and_no_reward_sees_them(tmp_path: Path) -> None:
    prompt = Prompt("h", [{"role": "user", "content": "how"}])
    rows = completions_of([prompt], [[Sample("so", (7, 1), -2.0, True, thoughts="hm")]], "v1", 1.0)
    seen: list[str] = []

    def reward(conversations: list) -> torch.Tensor:
        seen.extend(c[-1]["content"] for c in conversations)
        return torch.zeros(len(conversations))

    scored, _ = rescore(rows, {"h": prompt}, GatedReward(reward), make_accelerator(), "new")
    write_completions(tmp_path / "v1.parquet", scored)
    (kept,) = read_pool(tmp_path)
    assert (kept.text, kept.thoughts, seen) == ("so", "hm", ["so"])
    answer = prompt.answered(kept.text, kept.finished, kept.thoughts)[-1]["content"]
    assert answer == "<think>\nhm\n</think>\n\nso" and split_thoughts(answer) == ("hm", "so")
    older = parquet.read_table(tmp_path / "v1.parquet").drop_columns("thoughts")
    parquet.write_table(older, tmp_path / "v1.parquet")
    assert [row.thoughts for row in read_pool(tmp_path)] == [""], "files of older versions know none"


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

    rows, scores = rescore(earlier + drawn, prompts, GatedReward(length, brevity), make_accelerator(), "new")
    assert [row.reward for row in rows] == [5.0, 8.0, -3.0, -3.0, -3.0]
    assert [row.helpfulness for row in rows] == [5.0, 2.0, 13.0, 2.0, 13.0]
    assert [row.safety for row in rows] == [5.0, 8.0, -3.0, -3.0, -3.0]
    assert scores.used_safety.tolist() == [False, True, True, False, True]
    assert {row.reward_model for row in rows} == {"new"}
    chosen = select(rows, SelectionConfig()).chosen
    assert [(row.prompt_id, row.version) for row in chosen] == [("h", "v1"), ("s", "v1")]


def test_what_the_same_models_scored_goes_through_the_gate_alone() -> None:
    """Under a name that no others have; the new rows are scored, and an empty one has the lowest of these."""
    prompts = {
        "h": Prompt("h", [{"role": "user", "content": "how"}]),
        "s": Prompt("s", [{"role": "user", "content": "bad"}], domain="safety"),
    }
    scored: list[str] = []

    def length(conversations: list) -> torch.Tensor:
        scored.extend(c[-1]["content"] for c in conversations)
        return torch.tensor([float(len(c[-1]["content"])) for c in conversations])

    reward = GatedReward(length, lambda conversations: 10 - length(conversations))
    texts = {"h": ("short", "long enough"), "s": ("no", "")}
    rows = [completion(p, "v1", i, 0.0, text=text) for p, own in texts.items() for i, text in enumerate(own)]
    first, whole = rescore(rows, prompts, reward, make_accelerator(), "length (1a2b)", names_one=True)
    drawn = [completion("h", "v2", 0, 0.0, text="longer")]
    scored.clear()
    again, scores = rescore([*first, *drawn], prompts, reward, make_accelerator(), "length (1a2b)", names_one=True)
    assert set(scored) == {"longer"} and again[:-1] == first and again[-1].reward == 6.0
    assert torch.equal(scores.reward[:-1], whole.reward) and torch.equal(scores.used_safety[:-1], whole.used_safety)
    strict = replace(reward, gate=Gate(0.999))  # the reward models stay, the gate is another
    regated, _ = rescore(first[:3], prompts, strict, make_accelerator(), "length (1a2b)", names_one=True)
    assert [row.reward for row in regated] == [row.safety for row in first[:3]]
    scored.clear()
    for name, names_one in (("length (1a2b)", False), ("length (3c4d)", True)):
        rescore(first, prompts, reward, make_accelerator(), name, names_one=names_one)
    assert scored.count("short") == 4, "by another model, or one without a name of its own: anew"


def test_an_answer_that_a_reward_model_saw_cut_counts_as_unfinished_where_asked_for() -> None:
    class Short:
        """Takes five characters."""

        def __call__(self, conversations: list) -> torch.Tensor:
            self.too_long = [len(c[-1]["content"]) > 5 for c in conversations]
            return torch.tensor([float(len(c[-1]["content"])) for c in conversations])

    rows = [completion("h", "v1", i, 0.0, text=text) for i, text in enumerate(("short", "too long"))]
    prompts = {"h": Prompt("h", [{"role": "user", "content": "q"}])}
    for too_long, finished, chosen in (("cut", [True, True], "too long"), ("unfinished", [True, False], "short")):
        scored, scores = rescore(rows, prompts, GatedReward(Short(), too_long=too_long), make_accelerator(), "new")  # type: ignore[arg-type]
        assert scores.too_long.tolist() == [False, True] and scores.safety is None
        assert [row.finished for row in scored] == finished and {row.safety for row in scored} == {None}
        assert [row.text for row in select(scored, SelectionConfig()).chosen] == [chosen]
    with pytest.raises(InputError, match="1 of 2 answers with their prompts are longer than its context"):
        rescore(rows, prompts, GatedReward(Short(), too_long="refuse"), make_accelerator(), "new")
