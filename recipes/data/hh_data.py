"""Anthropic's HH preferences, split so that nothing held out is ever read (Llama 2 paper, section 3.2.1).

All four files are split AT ONCE by first human turn, as first turns repeat within and between them: what is held out
is read neither by the tokenizer nor by the base model, SFT, a reward model or the referee.

    python recipes/data/hh_data.py --config recipes/configs/hh/hh_data.yaml --data ../shared/data/hh-rlhf \\
        --output runs/hh_data

Reads helpful-base, harmless-base, helpful-online and helpful-rejection-sampled (.jsonl.gz or .jsonl). Writes, as rows
of `rlhf.data.rows` or {"messages"}:

    pretrain.jsonl                                 chosen dialogues of all four, training rows
    sft.jsonl                                      chosen dialogues of helpful-base and harmless-base, training rows
    preferences_{helpfulness,safety}_{train,test}  helpful-base; harmless-base, tagged safety
    preferences_{train,test}                       both domains together
    referee_{train,test}                           helpful-online and helpful-rejection-sampled
    prompts, validation_prompts, test_prompts      distinct prompts of both domains: training, validation, test rows
    split.json                                     the counts of all that, and of what was left out and why
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation
from rlhf.data.loading import load_preferences
from rlhf.data.prompt_sets import dialogue_key, draw_prompts, short_prompts
from rlhf.data.rows import Domain, Preference
from rlhf.data.splitting import split_by_first_turn
from rlhf.errors import InputError
from rlhf.jsonl import Row
from rlhf.stage import StageConfig, open_stage

FILES: dict[str, Domain] = {
    "helpful-base": "helpfulness",
    "harmless-base": "safety",
    "helpful-online": "helpfulness",
    "helpful-rejection-sampled": "helpfulness",
}
PAIRS = ("helpful-base", "harmless-base")
REFEREE = ("helpful-online", "helpful-rejection-sampled")


class HHFiles:
    """The folder of the four files."""

    def inputs(self, field: str, value: Any, config: Any) -> dict[str, Path]:
        """See `rlhf.stage.fields.InputCheck`."""
        return {f"{field}.{name}": find_file(Path(value), name) for name in FILES}


@dataclass(frozen=True, kw_only=True)
class HHDataConfig(StageConfig):
    """Which rows go where.

    Args:
        data: folder of the four HH files.
        test_share: share of the first turns held out for test prompts and, with validation_share, test preferences.
        validation_share: share of the first turns held out for validation prompts.
        max_characters: leave out a row whose last human turn and longer answer have more together; its older turns
            don't count, as training may drop them. 0: no limit.
        max_prompt_characters: leave out a prompt whose messages have more together. 0: no limit.
        max_prompts: most training prompts, half of them of each domain. 0: no limit, as for the next two.
        max_validation_prompts: most validation prompts.
        max_test_prompts: most test prompts.
        seed: of the split and of the prompts drawn.
    """

    data: Annotated[Path, HHFiles()]
    test_share: float = 0.15
    validation_share: float = 0.05
    max_characters: int = 1200
    max_prompt_characters: int = 600
    max_prompts: int = 0
    max_validation_prompts: int = 64
    max_test_prompts: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}: must lie between 0 and 1, got {getattr(self, name)}")
        if self.test_share + self.validation_share >= 1:
            raise InputError("test_share, validation_share: together they must leave rows to train on")
        limits = (
            "max_characters",
            "max_prompt_characters",
            "max_prompts",
            "max_validation_prompts",
            "max_test_prompts",
        )
        for name in limits:
            if getattr(self, name) < 0:
                raise InputError(f"{name}: must be 0 (no limit) or above, got {getattr(self, name)}")


def main(config: HHDataConfig) -> None:
    stage = open_stage(config, one_process=True)
    left_out: dict[str, Counter[str]] = {name: Counter() for name in FILES}
    files = {name: find_file(config.data, name) for name in FILES}
    rows = [row for name in FILES for row in read_file(files[name], name, config.max_characters, left_out[name])]
    shares = {
        "train": 1 - config.test_share - config.validation_share,
        "validation": config.validation_share,
        "test": config.test_share,
    }
    parts = split_by_first_turn(rows, shares, config.seed, key=lambda row: row.messages)
    train, held_out = parts["train"], parts["validation"] + parts["test"]

    sets: dict[str, Sequence[Row]] = {"pretrain": demonstrations(train), "sft": demonstrations(of_files(train, PAIRS))}
    for part, preferences in (("train", train), ("test", held_out)):
        sets[f"preferences_helpfulness_{part}"] = of_files(preferences, ["helpful-base"])
        sets[f"preferences_safety_{part}"] = of_files(preferences, ["harmless-base"])
        sets[f"preferences_{part}"] = of_files(preferences, PAIRS)
        sets[f"referee_{part}"] = of_files(preferences, REFEREE)
    prompts_left_out: Counter[str] = Counter()
    for name, part, most in (
        ("prompts", "train", config.max_prompts),
        ("validation_prompts", "validation", config.max_validation_prompts),
        ("test_prompts", "test", config.max_test_prompts),
    ):
        short = short_prompts(of_files(parts[part], PAIRS), config.max_prompt_characters, prompts_left_out)
        sets[name] = draw_prompts(short, most, config.seed)
    if empty := [name for name, own in sets.items() if not own]:
        raise InputError(f"data: nothing is left for {', '.join(empty)}; give more rows or raise the limits")

    with stage.work():
        for name, own in sets.items():
            stage.write_rows(f"{name}.jsonl", own)
        counts = {name: len(own) for name, own in sets.items()}
        split = {
            "rows": {part: dict(Counter(row.source for row in parts[part])) for part in parts},
            "written": counts,
            "left_out": {name: dict(reasons) for name, reasons in left_out.items()},
            "prompts_left_out": dict(prompts_left_out),
        }
        stage.write_json("split.json", split, shown=", ".join(f"{name} {count}" for name, count in counts.items()))
        stage.closing.rows(len(rows), sum(left_out.values(), Counter()))


def find_file(folder: Path, name: str) -> Path:
    """The HH file of that name, packed or not; InputError where there is none."""
    for suffix in (".jsonl.gz", ".jsonl"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise InputError(f"data: {folder} has no {name}.jsonl.gz; name the folder of the four HH files")


def read_file(file: Path, name: str, max_characters: int, left_out: Counter[str]) -> list[Preference]:
    """The usable rows of one file, tagged; the others are counted in `left_out`."""
    rows = load_preferences(file, domain=FILES[name], on_bad_row="skip", skipped=left_out)
    kept = []
    for row in rows:
        length = len(row.messages[-1]["content"]) + max(len(row.chosen), len(row.rejected))
        if max_characters and length > max_characters:
            left_out[f"last turn above {max_characters} characters"] += 1
        else:
            kept.append(row)
    return kept


def of_files(rows: Sequence[Preference], names: Sequence[str]) -> list[Preference]:
    """The rows that came from those files."""
    return [row for row in rows if row.source in names]


def demonstrations(rows: Iterable[Preference]) -> list[dict[str, Conversation]]:
    """Each distinct chosen dialogue once, as {"messages"}."""
    distinct = {dialogue_key(dialogue): dialogue for dialogue in (row.conversation("chosen") for row in rows)}
    return [{"messages": dialogue} for dialogue in distinct.values()]


if __name__ == "__main__":
    run_recipe(main, HHDataConfig)
