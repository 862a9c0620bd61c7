"""Pairs from a file are those rendered in memory, to the last id and loss, and take no memory of a process's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf import jsonl
from rlhf.conversation import Renderer
from rlhf.data import cores, loading
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.training import tokenized
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.pairs import render_pairs
from rlhf.rewards.training.rows import seen_prompts
from rlhf.rewards.training.table import PairTable
from rlhf.rewards.training.tokenized import SKIPPED, Tokenizing, open_reward_rows, write_reward_rows
from rlhf.rewards.training.train import pair_task, train_on_pairs
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import TrainingResult, train


def preference(number: int) -> Preference:
    """Of one to three turns, some of them too long for 60 tokens, one in seven even in its last turn."""
    asked: Any = [{"role": "user", "content": f"What is the river {number}? ☂"}]
    for turn in range(number % 3):
        asked += [{"role": "assistant", "content": "sure " * (1 + turn)}, {"role": "user", "content": f"why {turn}?"}]
    fields: dict[str, Any] = {"strength": (None, "better")[number % 2], "chosen_safe": (True, None)[number % 2]}
    rejected = "no " * (40 if number % 7 == 0 else 1 + number % 4)
    return Preference(f"id {number}", asked, f"mora {number}", rejected, **fields, source=f"set {number % 2}")


ROWS = [preference(number) for number in range(40)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, and two processes."""
    monkeypatch.setattr(tokenized, "CHUNK", 6)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("too_long", ["cut", "skip"])
def test_ids_and_everything_beside_are_those_in_memory(
    too_long: Any, tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renderer = Renderer(load_tokenizer(tiny_policy_path))
    wanted = render_pairs(ROWS, renderer, 60, too_long)
    said = capsys.readouterr().err
    tokenizing = Tokenizing(tiny_policy_path, RewardTrainingConfig(max_length=60, too_long=too_long))
    table, left_out = tokenizing.write(tmp_path / "pairs.arrow", "preferences", iter(ROWS))
    assert list(table) == table[:] == wanted and len(table) == len(wanted) < len(ROWS)
    assert capsys.readouterr().err == said and f"skipped {len(ROWS) - len(wanted)} of 40 pairs" in said
    kept = {pair.preference.id for pair in wanted}
    assert left_out == Counter(row.source for row in ROWS if row.id not in kept)
    assert table.cut() == sum(pair.cut for pair in wanted) and (table.cut() > 0) == (too_long == "cut")

    order = np.random.default_rng(0).permutation(len(wanted))[:9]
    for mixed, pairs in ((table, wanted), (table.followed_by(table, order), [wanted[i] for i in order])):
        assert list(mixed) == pairs and mixed[-1] == pairs[-1] and mixed.cut() == sum(pair.cut for pair in pairs)
        assert list(mixed.sources().items()) == list(Counter(pair.preference.source for pair in pairs).items())
        assert mixed.strengths() == {pair.preference.strength for pair in pairs}
        assert mixed.lengths().tolist() == [pair.length for pair in pairs]
    with pytest.raises(IndexError):
        table[len(table)]
    whole = [row for row in ROWS if row.id in kept]
    assert table.seen_in(PairTable.of(wanted[:5], whole[:5])) == seen_prompts(whole, whole[:5]) == 5
    assert table.shared_ids(PairTable.of(wanted[:5])) == 5


@pytest.mark.usefixtures("small_chunks")
def test_the_losses_are_those_of_a_list_of_rendered_pairs(tiny_policy_path: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=3e-3, batch_size=10, micro_batch_size=5, epochs=2)
    config = RewardTrainingConfig(max_length=60, optimizer=optimizer)
    accelerator, tokenizer = make_accelerator(), load_tokenizer(tiny_policy_path)
    model = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0, dtype="float32")
    task = pair_task(config, tokenizer.pad_token_id)
    listed = train(model, render_pairs(ROWS, Renderer(tokenizer), 60), task, optimizer, accelerator, seed=0)
    table, _ = Tokenizing(tiny_policy_path, config).write(tmp_path / "pairs.arrow", "preferences", ROWS)
    result = TrainingResult()
    train_on_pairs(tiny_policy_path, table, config, accelerator, safety_head=True, seed=0, result=result)
    assert result.losses == listed.losses and len(result.losses) == result.steps == 8
    assert result.rows == len(table) and result.cut == table.cut() > 0


def write(path: Path, rows: list[Preference]) -> str:
    path.write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    return str(path)


@pytest.mark.usefixtures("small_chunks")
def test_too_long_is_refused_where_it_is_trained_on(tiny_policy_path: Path, tmp_path: Path) -> None:
    """Every own row is; of the others those that are drawn, and the first of them is named."""
    short = [row for row in ROWS if len(row.messages) == 1 and len(row.rejected) < 20]
    long = [replace(row, domain="safety") for row in ROWS if len(row.rejected) > 100]
    own, other = write(tmp_path / "own.jsonl", short), write(tmp_path / "other.jsonl", long)
    tokenizing = Tokenizing(tiny_policy_path, RewardTrainingConfig(max_length=60, too_long="refuse"))
    with pytest.raises(InputError, match=r"preferences: row id 0 takes .* tokens, above max_length 60"):
        write_reward_rows(tmp_path, tokenizing, "safety", [other], [own], [])
    write_reward_rows(tmp_path, tokenizing, "helpfulness", [own], [other], [])
    rows = open_reward_rows(tmp_path, "helpfulness")
    tokenizing.require_fit(rows.own)
    with pytest.raises(InputError, match=r"preferences: row id 7 takes .* tokens, above max_length 60"):
        tokenizing.require_fit(rows.own.followed_by(rows.other, [0, len(short) + 1, len(short)]))


@pytest.mark.usefixtures("small_chunks")
def test_a_file_in_both_lists_is_read_and_tokenized_once(
    tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives the files that two copies of it give."""
    mixed = [replace(row, domain=("helpfulness", "safety")[i % 3 == 0]) for i, row in enumerate(ROWS)]
    file, copy = write(tmp_path / "rows.jsonl", mixed), tmp_path / "other" / "rows.jsonl"
    copy.parent.mkdir()
    write(copy, mixed)
    tokenizing, parsed = Tokenizing(tiny_policy_path, RewardTrainingConfig(max_length=60)), []
    monkeypatch.setattr(loading, "read_rows", lambda name: parsed.append(name) or jsonl.read_rows(name))
    found = []
    for folder, other in ((tmp_path / "once", file), (tmp_path / "twice", str(copy))):
        folder.mkdir()
        write_reward_rows(folder, tokenizing, "helpfulness", [file], [other], [file])
        rows = open_reward_rows(folder, "helpfulness")
        found.append([list(each) for each in (rows.own, rows.other, rows.test, rows.test_other)])
        assert {path.name for path in folder.iterdir()} == {*(f"{part}.arrow" for part in tokenized.PARTS), SKIPPED}
    assert found[0] == found[1] and all(found[0]) and parsed == [file, file, str(copy)]


def test_a_bad_row_is_named_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(ROWS[1].to_dict()) + "\n" + '{"chosen": 3}\n')
    monkeypatch.setattr(tokenized, "load_tokenizer", lambda path: pytest.fail("the tokenizer is loaded"))
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        write_reward_rows(tmp_path, Tokenizing(tmp_path, RewardTrainingConfig()), "helpfulness", [bad], [], [])


OF_A_SIZE = """
import sys
from pathlib import Path
from rlhf.data.rows import Preference
from rlhf.rewards.training import tokenized
from rlhf.rewards.training.config import RewardTrainingConfig

folder, policy, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tokenized.CHUNK = 100
ask = [{"role": "user", "content": "what is the river of velda ? " * 4}]
rows = (Preference(str(i), ask, f"mora {i} " + "sure " * 60, f"goat {i} " + "help " * 60) for i in range(count))
tokenizing = tokenized.Tokenizing(policy, RewardTrainingConfig())
table, _ = tokenizing.write(folder / f"{count}.arrow", "preferences", rows)
assert len(table) == count and sum(pair.length for pair in table) > 100 * count
own = [line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")]
print(own[0], (folder / f"{count}.arrow").stat().st_size // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_more_pairs_take_no_more_memory(tiny_policy_path: Path, tmp_path: Path) -> None:
    found = []
    for count in (300, 6000):
        command = [sys.executable, "-c", OF_A_SIZE, str(tmp_path), str(tiny_policy_path), str(count)]
        found.append([int(kb) for kb in subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()])
    (few, small_file), (many, large_file) = found
    assert large_file - small_file > 8 * 1024, "or else the test says nothing"
    assert many - few < 4 * 1024
