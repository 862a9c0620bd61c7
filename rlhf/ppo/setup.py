"""What PPO checks and loads before it starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from rlhf.errors import InputError, notice
from rlhf.models.checkpoint.folder import head_shapes, is_adapter_checkpoint, require_trainable
from rlhf.models.checkpoint.memory import HELD, NF4, TRAINED, held_bytes, parameters_of, require_memory
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.roles import Roles, SeparateRoles
from rlhf.ppo.shared import SharedRoles
from rlhf.rewards.loading import load_reward
from rlhf.training.accelerator import frozen_dtype, trained_dtype
from rlhf.training.whole import divide


def load_value_model(
    value_from: Path | None, policy: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> RewardModel:
    """A reward model that reads the policy's own token ids; None: the policy itself with a fresh head.

    Raises:
        InputError: its tokenizer numbers tokens otherwise than the policy's; it is an adapter alone.
    """
    if value_from is None:
        return RewardModel.from_policy(policy, safety_head=False, seed=seed)
    if is_adapter_checkpoint(value_from):
        raise InputError(
            f"value_from: {value_from} is an adapter, whose base a value model cannot train; name a "
            "reward model with whole weights"
        )
    if load_tokenizer(value_from).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"value_from: the tokenizer of {value_from} is not the policy's, and a value model reads the policy's "
            "tokens; name a reward model trained from a policy with that tokenizer"
        )
    return RewardModel.load(value_from)


def default_value(judges: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> Path | None:
    """The first of the helpfulness folders that a value model can start from; None: none can, as stderr says.

    It cannot from an adapter, from a reward model of another tokenizer, or from one without a `score` layer (decision
    35).
    """
    vocabulary = tokenizer.get_vocab()
    for judge in judges:
        reads_tokens = not is_adapter_checkpoint(judge) and "score.weight" in head_shapes(judge)
        if reads_tokens and load_tokenizer(judge).get_vocab() == vocabulary:
            return judge
    if judges:
        notice(
            f"value_from: {judges[0]} is an adapter, or does not read the policy's tokens one by one; the value starts "
            "from the policy with a new head"
        )
    return None


def role_bytes(
    policy: Path,
    judges: Sequence[str | os.PathLike[str] | None],
    shared: bool,
    with_value: bool,
    quantization: str | None,
    dtype: str = "float32",
) -> dict[str, float]:
    """What each role takes at least (`rlhf.models.checkpoint.memory`); reward functions are not counted.

    Args:
        dtype: that reward models are held in.
    """
    count = parameters_of(policy)
    if shared:
        return {"base": (NF4 if quantization == "nf4" else 2) * count}
    sizes = {"policy": TRAINED * count, "reference": HELD * count, "value": TRAINED * count * with_value}
    folders = [Path(spec) for spec in judges if spec is not None and Path(spec).is_dir()]
    return {**sizes, "reward models": sum(held_bytes(folder, dtype=dtype) for folder in folders)}


def load_roles(
    policy: Path,
    helpfulness: str | os.PathLike[str],
    safety: str | os.PathLike[str] | None,
    value_from: Path | None,
    accelerator: Accelerator,
    *,
    shared: bool = False,
    with_value: bool = True,
    adapter: AdapterConfig | None = None,
    quantization: Literal["nf4"] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> Roles:
    """The roles, separate or shared.

    Args:
        helpfulness, safety: as for `rlhf.rewards.loading.load_reward`; safety None: there is no safety model.
        value_from: see `load_value_model`, and for shared roles `SharedRoles.load`.
        shared: adapters on one base.
        with_value: whether a value is learnt.
        adapter, quantization, dtype: of shared roles.
        seed: of new heads and adapters.

    Raises:
        InputError: separate roles of which one is an adapter, or shared ones that do not fit together.
    """
    require_trainable(policy)
    held = frozen_dtype(accelerator.device)
    require_memory(role_bytes(policy, [helpfulness, safety], shared, with_value, quantization, held), accelerator)
    if shared:
        options: Any = {"adapter": adapter, "quantization": quantization, "dtype": dtype, "seed": seed}
        return SharedRoles.load(
            policy, helpfulness, safety, accelerator, value_from=value_from, with_value=with_value, **options
        )
    if is_adapter_checkpoint(policy):
        raise InputError(
            f"policy: {policy} is an adapter; train it with --roles shared, or merge it into whole weights"
        )
    value = load_value_model(value_from, policy, load_tokenizer(policy), seed=seed) if with_value else None
    if value is not None:
        divide(value, accelerator)
    reference = load_policy(policy, dtype=trained_dtype(accelerator))
    divide(reference, accelerator)
    judge = load_reward(helpfulness, accelerator=accelerator)
    other = None if safety is None else load_reward(safety, accelerator=accelerator)
    trained = load_policy(policy)
    divide(trained, accelerator)
    return SeparateRoles(trained, reference, value, judge, other, accelerator)
