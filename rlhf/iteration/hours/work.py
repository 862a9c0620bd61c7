"""What each recipe has to do, by its settings and the rows it reads. One declaration a recipe, in `RECIPES`.

Answers are taken to be as long as the calibration's were, of what they may be; where it wrote none, as long as they may
be. What they really take, the ledger's seconds put right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.iteration.hours.counts import CHARACTERS_PER_TOKEN, Counts, Rows, read_any, together
from rlhf.iteration.hours.speed import Work, scored, trained, written
from rlhf.iteration.plan import PlannedStage

ROWS_AT_ONCE = 512
"""Most answers that a process writes at once where the settings leave it to memory."""
POOLED = 16
"""Answers to a prompt that an earlier round is taken to have drawn, where the settings of a control do not say."""
ORIGIN_PAIRS = 500
"""Most pairs of its training that a reward model's origin is measured on (`rlhf.rewards.training.accuracy`)."""


class Reading:
    """One stage with its settings and what it reads; raises Unknown for what is not known."""

    def __init__(
        self, stage: PlannedStage, config: Any, counts: Counts, characters_per_token: float, answer_share: float
    ) -> None:
        self.stage, self.config, self.counts = stage, config, counts
        self.per_token, self.answer_share = characters_per_token, answer_share

    def rows(self, option: str) -> Rows:
        """What an option names."""
        found = self.counts.rows(self.stage, option)
        if found is None:
            raise Unknown(option)
        return found

    def named(self, *sources: str | Path) -> Rows:
        """What the settings name: local files."""
        found = [read_any(source) for source in sources]
        if unknown := [source for source, rows in zip(sources, found, strict=True) if rows is None]:
            raise Unknown(str(unknown[0]))
        return together([rows for rows in found if rows is not None])

    def tokens(self, rows: Rows, most: int | None = None) -> float:
        """Mean tokens of a row, `most` at most."""
        found = rows.characters / self.per_token
        return found if most is None else min(found, most)

    def pair_tokens(self, pairs: Rows, most: int | None) -> float:
        """Mean tokens of a preference, computed as one: its prompt once. A dialogue has `most` at most.

        Most prompts are short and few very long, so that the mean of what is left of them is far below the mean's: they
        are taken to be spread exponentially.
        """
        answer, prompt = (n / self.per_token for n in (pairs.answers / 2, pairs.characters - pairs.answers))
        if most is not None and prompt:
            answer = min(answer, most)
            prompt *= 1 - math.exp((answer - most) / prompt)
        return prompt + 2 * answer

    @property
    def answer(self) -> float:
        """Mean tokens of an answer that is drawn."""
        return self.answer_share * float(self.config.sampling.max_new_tokens)

    def written(self, answers: float, at_once: float | None = None) -> Work:
        """Answers drawn with the stage's settings, the processes side by side.

        at_once: most that a process writes; None: as the settings say.
        """
        processes = self.stage.processes
        most = self.config.policy.rows or ROWS_AT_ONCE if at_once is None else at_once
        each = answers / processes
        return written(each, self.answer, min(most, max(each, 1)), self.config.sampling.max_new_tokens) * processes

    @property
    def judges(self) -> int:
        """Reward models that score an answer."""
        return sum(getattr(self.config, name, None) is not None for name in ("helpfulness", "safety"))


class Unknown(Exception):
    """Nothing is known of what an option names yet."""


def work_of(
    stage: PlannedStage,
    config: Any,
    counts: Counts,
    characters_per_token: float = CHARACTERS_PER_TOKEN,
    answer_share: float = 1.0,
) -> Work | None:
    """What a stage has to do; None: its recipe is not among RECIPES, or nothing is known yet of what it reads.

    Args:
        answer_share: mean tokens of an answer over the most that it may have.
    """
    make = RECIPES.get(stage.recipe)
    try:
        return None if make is None else make(Reading(stage, config, counts, characters_per_token, answer_share))
    except Unknown:
        return None


def tokens_of_a_pass(config: Any) -> float | None:
    """Most tokens of a training's forward pass, by a recipe's settings; None: it trains nothing, or has no limit."""
    if (training := getattr(config, "training", None)) is not None and hasattr(training, "max_length"):
        length, micro_batch = training.max_length, 2 * training.optimizer.micro_batch_size  # a pair's two dialogues
    elif (finetuning := getattr(config, "finetuning", None)) is not None:
        length, micro_batch = finetuning.max_length, finetuning.optimizer.micro_batch_size
    elif (ppo := getattr(config, "ppo", None)) is not None:
        prompt, answer = config.max_prompt_tokens, config.sampling.max_new_tokens
        length, micro_batch = None if prompt is None else prompt + answer, ppo.optimizer.micro_batch_size
    else:
        return None
    return None if length is None else float(length * micro_batch)


def _reward(read: Reading) -> Work:
    training, pairs = read.config.training, read.rows("preferences")
    rows = pairs.of_domain("safety" if read.stage.recipe == "safety_reward" else "helpfulness")
    if "other_preferences" in read.stage.overrides:
        rows /= 1 - read.config.other_share
    tokens, test = read.pair_tokens(pairs, training.max_length), read.rows("test_preferences")
    optimizer = training.optimizer
    return (
        Work(loads=2)
        + trained(rows, tokens, optimizer.micro_batch_size, optimizer.epochs)
        + scored(min(rows, ORIGIN_PAIRS) + test.number, tokens, 4)
    )


def _sft(read: Reading) -> Work:
    rows, settings = read.rows("data"), read.config.finetuning
    tokens, held_out = read.tokens(rows, settings.max_length), read.config.heldout_share
    optimizer = settings.optimizer
    return (
        Work(loads=2)
        + trained(rows.number * (1 - held_out), tokens, optimizer.micro_batch_size, optimizer.epochs)
        + scored(rows.number * held_out * optimizer.epochs, tokens)
    )


def _dpo(read: Reading) -> Work:
    pairs, test, settings = read.rows("preferences"), read.rows("test_preferences"), read.config.finetuning
    tokens, optimizer = read.pair_tokens(pairs, settings.max_length), settings.optimizer
    return (
        Work(loads=3)
        + scored(pairs.number + 2 * test.number, tokens, 4)
        + trained(pairs.number, tokens, optimizer.micro_batch_size, optimizer.epochs)
    )


def _rejection_sampling(read: Reading) -> Work:
    config, prompts = read.config, read.rows("prompts")
    asked, answer, settings = read.tokens(prompts), read.answer, config.finetuning
    drawn = prompts.number * config.num_samples
    earlier = sum(1 for _ in read.stage.links) * (config.pool_top or config.num_samples or POOLED)
    to_score = Work(
        score_passes=prompts.number,
        score_tokens=prompts.number
        * (asked + (config.num_samples + earlier) * answer),  # a prompt's are scored at once
    )
    shown = 1 - (config.sft_share if "sft_data" in read.stage.overrides else 0.0)
    optimizer = settings.optimizer
    return (
        Work(loads=3 + read.judges)
        + scored(prompts.number, asked)
        + read.written(drawn)
        + to_score * read.judges
        + trained(
            prompts.number / shown,
            min(asked + answer, settings.max_length),
            optimizer.micro_batch_size,
            optimizer.epochs,
        )
    )


def _ppo(read: Reading) -> Work:
    config, prompts = read.config, read.rows("prompts")
    ppo = config.ppo
    row = read.tokens(prompts, config.max_prompt_tokens) + read.answer
    held_out = min(ppo.validation_size, read.rows("validation_prompts").number)
    learnt = 2 if ppo.learns_value else 1  # policy and value
    iteration = (
        read.written(ppo.batch_size, ppo.rows)
        + scored(ppo.batch_size, row) * (learnt + 1 + read.judges)
        + trained(ppo.batch_size, row, ppo.optimizer.micro_batch_size, ppo.optimizer.epochs) * learnt
    )
    look = read.written(held_out, ppo.rows) + scored(held_out, row) * (2 + read.judges)
    looks: int = 1 + ppo.iterations // ppo.evaluate_every
    iterations: int = ppo.iterations
    return Work(loads=4) + iteration * iterations + look * looks


def _evaluate(read: Reading) -> Work:
    config, prompts = read.config, read.rows("prompts")
    asked, answer = read.tokens(prompts, config.max_prompt_tokens), read.answer
    answers = prompts.number * config.samples_per_prompt
    sides = 2 if _scores_the_start_again(read) else 1
    passes: int = read.judges * sides + (config.referee is not None) + 2 * config.measures_kl
    return (
        Work(loads=1 + read.judges + (config.referee is not None) + config.measures_kl)
        + scored(prompts.number, asked)
        + read.written(answers)
        + scored(answers, asked + answer) * passes
    )


def _scores_the_start_again(read: Reading) -> bool:
    """Whether the start's answers lack the scores of this evaluation's reward models."""
    if read.config.baseline_evaluation is None:
        return False
    of_start = (stage for stage in read.counts.stages if stage.output == Path(read.config.baseline_evaluation))
    start = next(of_start, None)
    names = [name for name in ("helpfulness", "safety") if getattr(read.config, name) is not None]
    functions = any(":" in str(getattr(read.config, name)) for name in names)
    options = read.stage.overrides
    return start is None or functions or any(start.overrides.get(name) != options.get(name) for name in names)


def _evaluate_safety(read: Reading) -> Work:
    config, prompts = read.config, read.named(*read.config.prompts.values())
    answers = prompts.number * config.samples_per_prompt * (2 if config.dialogues is not None else 1)
    asked = read.tokens(prompts)
    return (
        Work(loads=1 + read.judges)
        + scored(prompts.number, asked)
        + read.written(answers)
        + scored(answers, asked + read.answer) * read.judges
    )


def _evaluate_instructions(read: Reading) -> Work:
    config, prompts = read.config, read.named(read.config.prompts)
    number = min(config.questions, prompts.number) if config.questions else prompts.number
    drawn = read.written(number)
    return Work(loads=1) + scored(number, read.tokens(prompts)) + drawn


def _evaluate_rewards(read: Reading) -> Work:
    test = read.rows("test_preferences")
    rewards = len(read.config.rewards)
    return Work(loads=rewards) + scored(test.number, read.pair_tokens(test, None), 4) * rewards


ASKED = {"arc": (25, 4), "hellaswag": (10, 4), "mmlu": (5, 1), "truthfulqa": (0, 8)}
"""Task of the leaderboard -> examples before a question, and endings that are scored apart: each anew behind them."""


def _leaderboard(read: Reading) -> Work:
    config, work = read.config, Work(loads=1)
    for task in config.tasks:
        shots, endings = ASKED[task]
        rows = read.named(config.local[task]) if task in config.local else None
        if rows is None:
            raise Unknown(task)
        limited = config.limit if task != "mmlu" else None  # which is of each subject
        asked = min(limited or rows.number, rows.number) * endings
        work += scored(asked, (shots + 1) * read.tokens(rows))
    return work


def _evaluate_text(read: Reading) -> Work:
    """A row counts whole, its reference too; BERTScore's encoder, whose size is not known, is left out."""
    config, given = read.config, read.stage.overrides
    found = [
        read.rows(o) if (o := f"data.{name}") in given else read.named(source) for name, source in config.data.items()
    ]
    rows = together([replace(one, number=min(config.rows, one.number)) for one in found])
    at_once = next(iter(config.models.values())).rows or ROWS_AT_ONCE
    each = Work(loads=1) + scored(rows.number, read.tokens(rows)) + read.written(rows.number, at_once)
    return each * len(config.models)


def _merge_adapter(read: Reading) -> Work:
    """Both merges, the base and what was trained: each reads the held-out rows, beside the one that was trained."""
    if read.config.data is None:
        return Work(loads=2)
    rows = read.rows("data") if "data" in read.stage.overrides else read.named(read.config.data)
    return Work(loads=5) + scored(min(read.config.max_rows, rows.number), read.tokens(rows)) * 8


def _sweep(read: Reading) -> Work:
    config, prompts = read.config, read.rows("prompts")
    number = min(config.num_prompts, prompts.number) if config.num_prompts else prompts.number
    asked, answer = read.tokens(prompts), read.answer
    drawn = read.written(number * config.num_samples)
    judged = Work(score_passes=number, score_tokens=number * (asked + config.num_samples * answer)) * read.judges
    return Work(loads=1 + read.judges) + (scored(number, asked) + drawn + judged) * len(config.temperatures)


def _loads(number: float) -> Callable[[Reading], Work]:
    return lambda read: Work(loads=number)


RECIPES: Mapping[str, Callable[[Reading], Work]] = {
    "prepare_data": _loads(0),
    "helpfulness_reward": _reward,
    "safety_reward": _reward,
    "sft": _sft,
    "dpo": _dpo,
    "rejection_sampling": _rejection_sampling,
    "ppo": _ppo,
    "evaluate": _evaluate,
    "evaluate_rewards": _evaluate_rewards,
    "evaluate_safety": _evaluate_safety,
    "evaluate_instructions": _evaluate_instructions,
    "leaderboard": _leaderboard,
    "evaluate_text": _evaluate_text,
    "merge_adapter": _merge_adapter,
    "temperature_sweep": _sweep,
    "average_policies": _loads(3),
}
