"""The pool: every version's scored answers, one `<version>.parquet` each.

Choosing among the answers of all versions, and not the last one's alone, is the paper's cure for forgetting (section
3.2.3; decision 25). Scores of different reward models cannot be compared: rescore the pool before choosing
(`rlhf.rejection.selection`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rlhf.conversation import says_nothing
from rlhf.data.rows import Completion, Prompt
from rlhf.errors import InputError
from rlhf.rejection.selection import SelectionConfig, select
from rlhf.sampling.protocol import Sample

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

    from rlhf.rewards.gate import GatedReward, GatedRewards


class StoredIds(Sequence[int]):
    """The token ids of one row, where they stand in a column: a tuple of them would take forty bytes a token.

    Equal to a tuple of the same ids.
    """

    __slots__ = ("_ends", "_ids", "_row")

    def __init__(self, ids: np.ndarray, ends: np.ndarray, row: int) -> None:
        self._ids, self._ends, self._row = ids, ends, row

    @classmethod
    def of_column(cls, column: Any) -> list[StoredIds]:
        """Of each row of a chunked Arrow column of lists."""
        lists = column.combine_chunks()
        ids, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
        return [cls(ids, ends, row) for row in range(len(lists))]

    def _own(self) -> np.ndarray:
        own: np.ndarray = self._ids[self._ends[self._row] : self._ends[self._row + 1]]
        return own

    def __len__(self) -> int:
        return len(self._own())

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        found: int | list[int] = self._own()[index].tolist()
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self._own().tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def write_completions(path: str | os.PathLike[str], rows: Iterable[Completion]) -> None:
    """Write one Parquet file of Completion rows."""
    import pyarrow
    from pyarrow import parquet

    rows = list(rows)
    columns = {name: [getattr(row, name) for row in rows] for name in _schema().names}
    columns["token_ids"] = [tuple(ids) for ids in columns["token_ids"]]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns, schema=_schema()), path)


def read_completions(path: str | os.PathLike[str]) -> list[Completion]:
    """Read what `write_completions` wrote. Raises InputError: no readable Parquet, or a column is missing.

    Token ids stay in the file's column, four bytes each, as nothing that chooses answers reads them.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        found = parquet.read_schema(path).names
        missing = [name for name in _schema().names if name not in found and name != "thoughts"]
        if missing:
            raise InputError(f"{path}: is not a file of completions, it has no column {missing[0]!r}")
        table = parquet.read_table(path, columns=[n for n in _schema().names if n in found])
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from error
    columns: dict[str, Sequence[Any]] = table.drop_columns("token_ids").to_pydict()
    for name in ("prompt_id", "version", "reward_model"):  # many rows have the same: one text of them
        texts = {text: text for text in columns[name]}
        columns[name] = [texts[text] for text in columns[name]]
    columns["token_ids"] = StoredIds.of_column(table["token_ids"])
    columns.setdefault("thoughts", [""] * len(table))  # older files know none
    del table
    pyarrow.default_memory_pool().release_unused()  # the texts are Python's now
    return [Completion(*row) for row in zip(*(columns[f.name] for f in fields(Completion)), strict=True)]


def read_pool(
    folder: str | os.PathLike[str] | None,
    versions: Sequence[str] | None = None,
    *,
    top: int = 0,
    missing_end_penalty: float | None = None,
    new: str | None = None,
) -> list[Completion]:
    """All completions of a pool, older versions first.

    Args:
        folder: holds `<version>.parquet` files; None: there is no pool.
        versions: the wanted ones, oldest first; None: all, by name, numbers in it by value (v2 before v10).
        top: of each version only the best answers to a prompt, this many, by the rewards it was written with; 0: all.
        missing_end_penalty: see `SelectionConfig`; decides whether unfinished answers are among these.
        new: name of the version that will choose among them.

    Raises:
        InputError: no such folder, a named version that is not there, one of the name `new` that is, or a file that
            cannot be read.
    """
    if folder is None:
        return []
    files = {file.stem: file for file in Path(folder).glob("*.parquet")}
    if not Path(folder).is_dir() or not files:
        raise InputError(f"pool: {folder} holds no <version>.parquet; name the pool folder of a run, or none")
    for version in versions or ():
        if version not in files:
            raise InputError(
                f"pool: {folder} has no version {version!r}, only {', '.join(sorted(files, key=_by_number))}"
            )
    if new in files:
        raise InputError(f"version: {new} is in the pool already; give this version another name")
    wanted = sorted(files, key=_by_number) if versions is None else versions
    pools = (read_completions(files[version]) for version in wanted)  # one at a time: of each its best alone are kept
    if not top:
        return [row for pool in pools for row in pool]
    best = SelectionConfig(top_n=top, missing_end_penalty=missing_end_penalty)
    return [row for pool in pools for row in select(pool, best).chosen]


def pool_sizes(folder: str | os.PathLike[str] | None) -> dict[str, int]:
    """Version -> number of its answers in a pool, older versions first."""
    from pyarrow import parquet

    if folder is None:
        return {}
    files = sorted(Path(folder).glob("*.parquet"), key=lambda file: _by_number(file.stem))
    return {file.stem: parquet.read_metadata(file).num_rows for file in files}


def prompts_by_id(prompts: Sequence[Prompt], earlier: Iterable[Sequence[Prompt]] = ()) -> dict[str, Prompt]:
    """This version's prompts and those of earlier ones; InputError where one id stands at different messages."""
    by_id: dict[str, Prompt] = {}
    for prompt in chain(*earlier, prompts):
        if by_id.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise InputError(f"earlier_prompts: two prompts have the id {prompt.id!r}; give each its own")
    return by_id


def completions_of(
    prompts: Sequence[Prompt], samples: Sequence[Sequence[Sample]], version: str, temperature: float
) -> list[Completion]:
    """Samples as completions, prompt after prompt, not yet scored (NaN)."""
    return [
        Completion(
            prompt_id=prompt.id,
            version=version,
            index=index,
            text=sample.text,
            token_ids=sample.token_ids,
            logprob=sample.logprob,
            temperature=temperature,
            finished=sample.finished,
            thoughts=sample.thoughts,
            helpfulness=math.nan,
            safety=math.nan,
            reward=math.nan,
            reward_model="",
        )
        for prompt, answers in zip(prompts, samples, strict=True)
        for index, sample in enumerate(answers)
    ]


def rescore(
    rows: Sequence[Completion],
    prompts: Mapping[str, Prompt],
    reward: GatedReward,
    accelerator: Accelerator,
    reward_model: str,
    kept: Path | None = None,
    names_one: bool = False,
) -> tuple[list[Completion], GatedRewards]:
    """The rows with the scores of these reward models, and the scores beside.

    Dealt out over the processes, the same on each. Where `reward.too_long` is "unfinished", rows that a reward model
    saw cut count as not finished.

    Args:
        prompts: by id, for their messages and domains.
        reward_model: name of the reward, kept in each row.
        kept: file in which the scores outlive a kill (`rlhf.rewards.distributed.score_answers`).
        names_one: no two rewards have this name, so that rows which carry it keep their raw scores, and go through the
            gate alone; whether they were cut is in `finished`, and no longer in `too_long`.
    """
    import torch

    from rlhf.rewards.distributed import score_answers
    from rlhf.rewards.gate import GatedRewards

    asked = [prompts[row.prompt_id] for row in rows]
    new = [i for i, row in enumerate(rows) if not (names_one and row.reward_model == reward_model)]
    helpfulness, raw_safety = (
        torch.tensor([getattr(row, n) or 0.0 for row in rows]) for n in ("helpfulness", "safety")
    )
    too_long = torch.zeros(len(rows), dtype=torch.bool)
    if new:
        scored_now = score_answers([asked[i] for i in new], [rows[i].text for i in new], reward, accelerator, kept)
        helpfulness[new], too_long[new] = scored_now.helpfulness, scored_now.too_long
        if scored_now.safety is not None:
            raw_safety[new] = scored_now.safety
    both = helpfulness, None if reward.safety is None else raw_safety
    rewards, used_safety = reward.gated(*both, [prompt.domain for prompt in asked])
    for i, row in enumerate(rows):
        if says_nothing(row.text):  # its reward is the lowest of those it was scored with, and no gate's
            rewards[i], used_safety[i] = row.reward, False
    if new:
        rewards[new], used_safety[new] = scored_now.reward, scored_now.used_safety
    scores = GatedRewards(*both, rewards, used_safety, too_long)
    safety = [None] * len(rows) if scores.safety is None else scores.safety.tolist()
    columns = (scores.helpfulness.tolist(), safety, scores.reward.tolist(), scores.too_long.tolist())
    scored = [
        replace(
            row,
            helpfulness=h,
            safety=s,
            reward=r,
            reward_model=reward_model,
            finished=reward.counts_as_finished(row.finished, too_long),
        )
        for row, h, s, r, too_long in zip(rows, *columns, strict=True)
    ]
    return scored, scores


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "int": pa.int64(),
        "float": pa.float32(),
        "float | None": pa.float32(),
        "bool": pa.bool_(),
        "Sequence[int]": pa.list_(pa.int32()),
    }
    return pa.schema([(f.name, kinds[str(f.type)]) for f in fields(Completion)])
