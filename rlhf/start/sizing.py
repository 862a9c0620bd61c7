"""Settings for one model, one machine and so much data: each value with the reason for it.

What the paper fixes is kept for models of its size that are trained whole. For what is smaller, or trained by adapters,
the values come from trials on a chat model of 135M parameters with real preferences, and from the QLoRA report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlhf.start.look import ChatModel
from rlhf.start.machine import GIB, Machine

Settings = dict[str, tuple[object, str]]
"""Dotted option -> value and reason."""

BYTES_WHOLE = 16
"""A weight trained whole: float32 weight, gradient and AdamW's two moments."""
TINY = 2e7
"""Weights of a model whose training a CPU does not feel."""
TEMPERATURE = 0.7
"""At 1 a small chat model writes near-gibberish, at this readable English that is still varied."""
COLDEST = 0.5
"""Below it the K answers to a prompt are too alike to choose among, and to learn from."""
MANY_PAIRS = 20_000
"""Below it the other domain's pairs are left out: in HH the two domains' judges prefer opposite answers."""
CPU_PAIRS, CPU_REFEREE_PAIRS, CPU_PROMPTS = 800, 600, 150
"""Most pairs of a domain and of a referee, and prompts of a version, where a CPU trains a model that is not tiny:
hours, not days."""
CPU_LENGTH = 256
"""Most tokens of a dialogue that a reward model is trained on there: that of the trials."""
ROLES = 5
"""Of PPO: policy, reference, value and two reward models."""


@dataclass(frozen=True)
class Data:
    """How many pairs and prompts to train on there are, whether both domains have pairs, and any pair a strength; how
    many dialogues to make a chat model of a base with."""

    pairs: int
    prompts: int
    two_domains: bool
    strengths: bool
    dialogues: int = 0


@dataclass(frozen=True)
class Sizes:
    """What follows from model and machine.

    Args:
        adapter: train LoRA adapters on one frozen base, and not the weights.
        rank: of the adapters.
        nf4: hold the base in 4 bit.
        answer: most new tokens.
        length: most tokens of a trained dialogue.
        micro_batch: rows per forward pass.
        cpu: there is no GPU, and the model is not tiny.
        small: a model of less than a billion weights.
        why: in words, why adapters or not.
    """

    adapter: bool
    rank: int
    nf4: bool
    answer: int
    length: int
    micro_batch: int
    cpu: bool
    small: bool
    why: str


def sizes_for(model: ChatModel, machine: Machine) -> Sizes:
    """Whole weights where PPO's five models take less than half the memory, and on a CPU only where they are tiny.

    Else adapters; over 4 bit where 16 bit would take half the memory of a GPU.
    """
    small = model.parameters < 1e9
    whole = (2 * BYTES_WHOLE + 3 * 4) * model.parameters / GIB
    available = machine.memory_of_one
    cpu = not machine.gpus and model.parameters > TINY
    adapter = whole > 0.5 * available or cpu
    nf4 = bool(machine.gpus) and 2 * model.parameters / GIB > 0.5 * available
    context = model.context or 4096
    answer = min(128 if small and not machine.gpus else 512, context // 4)
    length = min(384 if small and not machine.gpus else 2048, context)
    room = available - (0.6 if nf4 else 4 if not machine.gpus else 2) * model.parameters / GIB
    micro_batch = max(
        1, min(4 if cpu else 8, 2 ** int(math.log2(max(1.0, 8 * room / (model.parameters / 1e9 + 0.1) / 16))))
    )
    comparison = f"PPO's {ROLES} models trained whole are {whole:.1f} GiB, a process has {available:.1f}"
    return Sizes(adapter, 16 if small else 64, nf4, answer, length, micro_batch, cpu, small, comparison)


def settings_for(model: ChatModel, machine: Machine, data: Data) -> dict[str, Settings]:
    """Recipe -> option -> (value, the reason for it), for every recipe that a plan of `rlhf new` runs."""
    sizes, temperature = sizes_for(model, machine), _temperature(model)
    if sizes.cpu:
        data = replace(data, pairs=min(data.pairs, CPU_PAIRS), prompts=min(data.prompts, CPU_PROMPTS))
    return {
        "prepare_data": {
            "on_bad_row": ("skip", "bad rows are left out, counted and said"),
            "rounds": ("share", "new prompts each round, as in the paper; all: the same ones each time"),
            "max_prompt_characters": (4 * (sizes.length - sizes.answer), "room for the answer, at about 4 a token"),
            **(_few_rows() if sizes.cpu else {}),
        },
        "sft": _sft(model, sizes, data),
        "helpfulness_reward": _reward(sizes, data, "other_share", 0.5),
        "safety_reward": _reward(sizes, data, "other_share", 0.1),
        "temperature_sweep": {"sampling.max_new_tokens": (sizes.answer, "as in rejection sampling")},
        "rejection_sampling": {
            "num_samples": (8 if sizes.small else 16, "K answers per prompt; 10 to 100 in the paper"),
            "sampling.temperature": temperature,
            "sampling.top_k": (50, "a small model's tail is noise"),
            "sampling.max_new_tokens": (sizes.answer, "longer answers are cut, and never kept"),
            **({"policy.quantization": ("nf4", "of the policy that answers")} if sizes.nf4 else {}),
            **_trained(sizes),
            **_optimizer(
                "finetuning.optimizer",
                sizes,
                rate=(1e-3, 1e-4, 2e-5),
                epochs=5 if sizes.small else 2,
                batch=_batch(max(data.prompts, 1), 64),
                trial="in a trial on a chat model of 135M, 3e-4 and 2 passes moved it less",
            ),
            "finetuning.max_length": (sizes.length, "most tokens of a dialogue"),
            **_often("finetuning", sizes, 10),
        },
        "ppo": {"sampling.temperature": temperature, **_ppo(sizes, data)},
        "evaluate": {
            "sampling.temperature": (temperature[0], "as in training; with no top-k the KL from the start is measured"),
            "sampling.max_new_tokens": (sizes.answer, "as in training"),
            "samples_per_prompt": (1, "more narrow the intervals"),
            "max_prompt_tokens": (sizes.length, "longer test prompts are left out, and said"),
        },
    }


def _sft(model: ChatModel, sizes: Sizes, data: Data) -> Settings:
    settings: Settings = {}
    if not model.own_template:
        settings["chat_template"] = ("llama2", "the base has none; or a file with a Jinja template")
    if sizes.adapter:
        settings["adapter.r"] = (sizes.rank, f"LoRA rank: {sizes.why}")
        settings["adapter.merge"] = (True, "what is trained after it starts from whole weights")
    if sizes.nf4:
        settings["quantization"] = ("nf4", "the base in 4 bit; then an adapter alone is saved")
    return {
        **settings,
        **_optimizer(
            "finetuning.optimizer",
            sizes,
            rate=(2e-4, 2e-4, 2e-5),
            epochs=2,
            batch=_batch(max(data.dialogues, 1), 64),
            trial="the QLoRA report's",
        ),
        "finetuning.max_length": (sizes.length, "most tokens of a dialogue; oldest turns go first"),
        "finetuning.on_bad_row": ("skip", "bad rows are left out, counted and said"),
    }


def _few_rows() -> Settings:
    return {
        "max_preferences": (CPU_PAIRS, "pairs of a domain: a CPU trains on one in a second or more; 0: all"),
        "max_referee_preferences": (CPU_REFEREE_PAIRS, "pairs of the referee, not among the former; 0: all"),
        "max_validation_prompts": (128, "held-out prompts that choose PPO's checkpoint: 64 leave 0.08 to chance"),
        "max_test_preferences": (200, "held-out pairs of a domain; 0: all"),
        "max_prompts": (CPU_PROMPTS, "prompts of a version, each answered K times; 0: all"),
    }


def _reward(sizes: Sizes, data: Data, share: str, of_other: float) -> Settings:
    if not data.two_domains:
        mixed = (0.0, "of the other domain's pairs: there are none")
    elif sizes.small or data.pairs < MANY_PAIRS:
        mixed = (
            0.0,
            f"of the other domain's pairs, whose judges want the opposite; the paper's {of_other:g} has a million",
        )
    else:
        mixed = (of_other, "of the other domain's pairs, as the paper mixes")
    settings: Settings = {
        share: mixed,
        "cut_off_share": (0.1, "of its own pairs, added with the chosen answer cut off, which a model may like better"),
        "on_bad_row": ("skip", "bad rows are left out, counted and said"),
        "training.max_length": (
            min(sizes.length, CPU_LENGTH) if sizes.cpu else sizes.length,
            "most tokens of a dialogue; oldest turns go first",
        ),
        "training.too_long": ("cut", "a longer pair loses its oldest turns; if that does not do, it is left out"),
        "training.centering_weight": (0.01, "keeps the scores' mean near 0, where the safety gate reads them"),
    }
    if not data.strengths:
        settings["training.margin"] = ("none", "no pair says how much better its answer is")
    if sizes.adapter:
        settings["training.adapter.r"] = (sizes.rank, "LoRA rank")
        settings["training.adapter.merge"] = (False, "an adapter on the chat model, which PPO's roles share")
        if sizes.cpu:
            settings["training.adapter.dropout"] = (
                0.0,
                "one pass over the rows, and a CPU is slow at drawing it",
            )
    if sizes.nf4:
        settings["training.quantization"] = ("nf4", "the base in 4 bit")
    batch = _batch(data.pairs, 512)
    trial = "in trials on a chat model of 135M, with 16 pairs a step"
    settings |= _optimizer("training.optimizer", sizes, rate=(3e-4, 1e-4, 1e-5), epochs=1, batch=batch, trial=trial)
    steps = math.ceil(max(1, data.pairs) / batch)
    settings["training.optimizer.warmup_min_steps"] = (
        min(5, steps // 10),
        "the paper's 5, where steps allow",
    )
    settings["training.optimizer.micro_batch_size"] = (
        max(1, min(sizes.micro_batch // 2, batch)),
        "pairs per forward pass, two dialogues each; changes no result",
    )
    return settings | _often("training", sizes, 10)


def _often(group: str, sizes: Sizes, every: int) -> Settings:
    """States of a training whose steps take a CPU a minute."""
    if not sizes.cpu:
        return {}
    return {f"{group}.checkpoint_every": (every, "steps from one state to the next: a kill costs no more")}


def _temperature(model: ChatModel) -> tuple[float, str]:
    """The one temperature of a run, which sampling, PPO and evaluation share, and why."""
    if model.temperature is not None and model.temperature >= COLDEST:
        return model.temperature, "the model's own, from its generation_config.json"
    if model.temperature is None:
        return TEMPERATURE, "readable, still varied; recipes/studies/temperature_sweep.py finds the best"
    why = f"its generation_config.json names {model.temperature:g}, at which answers are too alike to choose among"
    return TEMPERATURE, why


def _trained(sizes: Sizes) -> Settings:
    settings: Settings = {}
    if sizes.adapter:
        settings["adapter.r"] = (sizes.rank, f"LoRA rank: {sizes.why}")
        settings["adapter.merge"] = (False, "an adapter on the chat model, which PPO's roles share")
    if sizes.nf4:
        settings["quantization"] = ("nf4", "the base in 4 bit")
    return settings


def _optimizer(
    group: str, sizes: Sizes, rate: tuple[float, float, float], epochs: int, batch: int, trial: str
) -> Settings:
    """rate: of an adapter on a small model, for which `trial` says why, of one on a larger model, of whole weights."""
    if not sizes.adapter:
        found, why = rate[2], "the paper's, for whole weights"
    else:
        found, why = (rate[0], f"for adapters; {trial}") if sizes.small else (rate[1], "for adapters")
    settings: Settings = {
        f"{group}.learning_rate": (found, why),
        f"{group}.epochs": (epochs, "passes over the rows"),
        f"{group}.batch_size": (batch, "rows per step: at least about fifty steps where the rows allow"),
        f"{group}.micro_batch_size": (
            min(sizes.micro_batch, batch),
            "rows per forward pass; changes no result",
        ),
    }
    if not sizes.small:
        settings[f"{group}.gradient_checkpointing"] = (True, "time for memory")
    return settings


def _ppo(sizes: Sizes, data: Data) -> Settings:
    settings = _trained(sizes)
    if sizes.adapter:
        settings["roles"] = ("shared", f"adapters and heads on one base: {sizes.why}")
    compares = sizes.adapter and sizes.small
    batch = 64 if compares else 32 if sizes.small else 512
    minibatch = batch // 2 if sizes.small else 64
    if compares:
        settings["ppo.estimator"] = (
            "rloo",
            "compares a prompt's answers; on a chat model of 135M a value model learnt nothing in so few steps",
        )
        settings["ppo.samples_per_prompt"] = (4, "answers to compare")
    rate = 1e-6 if not sizes.adapter else 2e-4 if sizes.small else 1e-5
    why = "; the paper's" if not sizes.adapter else "; in a trial on a chat model of 135M" if compares else ""
    return settings | {
        "max_prompt_tokens": (sizes.length, "longer prompts are left out, and said"),
        "sampling.max_new_tokens": (sizes.answer, "an answer without an end pays a penalty"),
        "ppo.unfinished_score": (
            "neutral",
            "reward models have read whole answers, and may like those that are cut off",
        ),
        "ppo.iterations": (12 if sizes.cpu else 20 if sizes.small else 200, "at most; 200 to 400 in the paper"),
        "ppo.batch_size": (batch, "answers per iteration; 512 in the paper"),
        "ppo.beta": (0.01, "weight of the KL, the paper's"),
        "ppo.evaluate_every": (
            6 if sizes.cpu else 5 if sizes.small else 10,
            "held-out prompts decide which checkpoint is kept",
        ),
        "ppo.max_kl": (20.0, "nats per answer; beyond it the policy has left the reward models' ground"),
        "ppo.optimizer.learning_rate": (rate, f"constant{why}"),
        "ppo.optimizer.batch_size": (minibatch, "a step's answers; 64 in the paper"),
        "ppo.optimizer.micro_batch_size": (min(sizes.micro_batch, minibatch), "rows per forward pass, by memory"),
        "ppo.rows": (batch if sizes.small else 128, "answers written side by side"),
        **_often("ppo", sizes, 2),
    }


def _batch(rows: int, most: int) -> int:
    """A power of two between 8 and `most` that leaves fifty steps where the rows allow."""
    power: int = 2 ** int(math.log2(max(8, rows / 50)))
    return max(8, min(most, power))


def option_tree(settings: Mapping[str, tuple[object, str]]) -> dict[str, object]:
    """Dotted options as nested dictionaries; the leaves are (value, reason)."""
    tree: dict[str, object] = {}
    for dotted, leaf in settings.items():
        *groups, last = dotted.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})  # type: ignore[assignment]
        inner[last] = leaf
    return tree
