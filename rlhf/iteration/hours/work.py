"""What each recipe has to do, by its settings and the rows it reads. One declaration a recipe, in `RECIPES`.

Answers are taken to be as long as the calibration's were, of what they may be; where it wrote none, as long as they may
be. What they really take, the ledger's seconds put right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.iteration.hours.counts import CHARACTERS_PER_TOKEN, Counts, together
from rlhf.iteration.hours.reading import ROWS_AT_ONCE, Reading, Unknown
from rlhf.iteration.hours.speed import Work, scored, trained
from rlhf.iteration.plan import PlannedStage, maker_of

POOLED = 16
"""Answers to a prompt that an earlier round is taken to have drawn, where the settings of a control do not say."""
ORIGIN_PAIRS = 500
"""Most pairs of its training that a reward model's origin is measured on (`rlhf.rewards.training.accuracy`)."""
CUT_OFF_PAIRS = 100
"""Most held-out pairs whose chosen answer is scored cut off too, half of a pair (`rlhf.rewards.training.cut_off`)."""


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
        + trained(rows * (1 + read.config.cut_off_share / 2), tokens, optimizer.micro_batch_size, optimizer.epochs)
        + scored(min(rows, ORIGIN_PAIRS) + test.number + min(test.number, CUT_OFF_PAIRS) / 2, tokens, 4)
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
    rescored = sum(_by_other_rewards(target, read) for _, target in read.stage.links)
    earlier = rescored * (config.pool_top or config.num_samples or POOLED)
    to_score = read.judged(prompts.number, asked, config.num_samples + earlier)
    optimizer, learnt = settings.optimizer, prompts.number + read.earlier_prompts  # a row of each
    return (
        Work(loads=3 + read.judges)
        + scored(prompts.number, asked)
        + read.written(drawn)
        + to_score * read.judges
        + trained(
            learnt / read.own_share,
            min(asked + answer, settings.max_length),
            optimizer.micro_batch_size,
            optimizer.epochs,
        )
    )


def _by_other_rewards(pool: Path, read: Reading) -> bool:
    """Whether an earlier version's answers were scored by other reward models than this stage's."""
    maker = maker_of(pool, read.counts.stages)
    own = read.stage.overrides
    return maker is None or any(maker.overrides.get(name) != own.get(name) for name in ("helpfulness", "safety"))


def _ppo(read: Reading) -> Work:
    config, prompts = read.config, read.rows("prompts")
    ppo = config.ppo
    asked = read.tokens(prompts, config.max_prompt_tokens)
    row = (
        asked / min(ppo.samples_per_prompt, ppo.optimizer.micro_batch_size) + read.answer
    )  # a forward pass has a prompt once
    held_out = min(ppo.validation_size, read.rows("validation_prompts").number)
    learnt = 2 if ppo.learns_value else 1  # policy and value
    iteration = (
        read.written(ppo.batch_size, ppo.rows)
        + scored(ppo.batch_size, row) * (learnt + 1 + read.judges)
        + trained(ppo.batch_size, row, ppo.optimizer.micro_batch_size, ppo.optimizer.epochs) * learnt
    )
    look = read.written(held_out, ppo.rows) + scored(held_out, asked + read.answer) * (2 + read.judges)
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


ASKED = {"arc": (25, 0.5), "hellaswag": (10, 0.4), "mmlu": (5, 1.0), "truthfulqa": (0, 0.0)}
"""Task of the leaderboard -> examples before a question, and the share of a row's characters that an example has."""

TRUTHFULQA = (8, 685)
"""Means of its file: answers of a question, and characters of one with the six examples and the question before it."""
LISTS = 3
"""Of hobbies, languages and figures, which the policy writes where no instructions are given."""


def _leaderboard(read: Reading) -> Work:
    """A question's context counts once, with all its choices: `rlhf.evaluation.benchmarks.choices`."""
    config, work = read.config, Work(loads=1)
    for task in config.tasks:
        shots, share = ASKED[task]
        rows = read.named(config.local[task]) if task in config.local else None
        if rows is None:
            raise Unknown(task)
        limited = config.limit if task != "mmlu" else None  # which is of each subject
        before = TRUTHFULQA[1] / read.per_token if task == "truthfulqa" else shots * share * read.tokens(rows)
        work += scored(min(limited or rows.number, rows.number), before + read.tokens(rows))
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
    asked = read.tokens(prompts)
    drawn = read.written(number * config.num_samples)
    judged = read.judged(number, asked, config.num_samples) * read.judges
    return Work(loads=1 + read.judges) + (scored(number, asked) + drawn + judged) * len(config.temperatures)


def _ghost_attention(read: Reading) -> Work:
    config, rows, settings = read.config, read.needed("dialogues"), read.config.finetuning
    number = rows.number * rows.several
    number = min(number, config.num_dialogues) if config.num_dialogues else number
    turns = 1 + (rows.turns - 1) / rows.several if rows.several else 1.0  # of those that have several
    user, given = ((n / read.per_token / rows.turns) for n in (rows.characters - rows.answers, rows.answers))
    if config.history == "given":
        history = turns * user + (turns - 1) * given
        drawn, row = scored(number, history) + read.written(number), history + read.answer
    else:  # before answer t stand t messages of the user's and t - 1 answers
        asked = user * (turns + 1) / 2 + read.answer * (turns - 1) / 2
        drawn, row = scored(number * turns, asked) + read.written(number) * turns, turns * (user + read.answer)
    if config.instructions is None:
        drawn += read.written(config.list_samples) * LISTS
    optimizer = settings.optimizer
    tuned = trained(
        number / read.own_share, min(row, settings.max_length), optimizer.micro_batch_size, optimizer.epochs
    )
    return Work(loads=3) + drawn + tuned


def _context_distillation(read: Reading) -> Work:
    config, prompts, settings = read.config, read.needed("prompts"), read.config.finetuning
    number, plain = prompts.of_domain("safety"), read.tokens(prompts)
    answers, preprompt = number * config.num_samples, len(config.generic) / read.per_token
    drawn = scored(3 * number, plain + 2 * preprompt / 3) + read.written(answers) * 3  # plain, generic, by category
    held_out = read.named(*([] if config.test_prompts is None else [config.test_prompts]))
    looks = (scored(held_out.number, read.tokens(held_out)) + read.written(held_out.number)) * 2
    row, optimizer = min(plain + read.answer, settings.max_length), settings.optimizer
    return (
        Work(loads=4 + (config.test_prompts is not None))
        + drawn
        + read.judged(number, plain, config.num_samples) * 3
        + trained(answers / read.own_share, row, optimizer.micro_batch_size, optimizer.epochs)
        + looks
    )


def _collect_preferences(read: Reading) -> Work:
    config, options = read.config, read.config.annotator_options
    if config.annotator not in ("simulated", "proxy"):
        raise Unknown(config.annotator)  # people, and models behind servers, take their own time
    prompts = together([read.needed("prompts"), read.rows("test_prompts")])
    counts = {"helpfulness": config.pairs_per_prompt}
    counts["safety"] = config.safety_pairs_per_prompt or config.pairs_per_prompt
    pairs = {domain: prompts.of_domain(domain) * count for domain, count in counts.items()}
    number, asked = sum(pairs.values()), read.tokens(prompts)
    by_rewards = sum(pairs[domain] for domain in pairs if getattr(config, domain) is not None)
    proxies = by_the_first = 0
    if config.annotator == "proxy":
        proxies = 1 + (options.get("safety") is not None)
        by_the_first = number * (1 + (options.get("safe_above") is not None))
    return (
        Work(loads=2 + read.judges + proxies)
        + (scored(prompts.number, asked) + read.written(number)) * 2
        + scored(by_rewards + by_the_first * read.stage.processes, asked + 2 * read.answer, 4)
    )


def _gate_sweep(read: Reading) -> Work:
    pairs = read.needed("preferences")
    return Work(loads=2) + scored(pairs.number, read.pair_tokens(pairs, None), 4) * 2


def _safety_benchmarks(read: Reading) -> Work:
    config = read.config
    if config.truthfulqa is None or config.truthful is not None or config.toxigen is not None or config.bold:
        raise Unknown("classifiers")  # which are of other sizes
    number = read.named(config.truthfulqa).number
    number = min(number, config.questions or number)
    answers, characters = TRUTHFULQA
    return Work(loads=1) + scored(number * answers, characters / read.per_token) * read.stage.processes  # each does all


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
    "gate_sweep": _gate_sweep,
    "collect_preferences": _collect_preferences,
    "ghost_attention": _ghost_attention,
    "context_distillation": _context_distillation,
    "safety_benchmarks": _safety_benchmarks,
    "average_policies": _loads(3),
}
