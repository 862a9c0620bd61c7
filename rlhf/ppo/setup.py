"""What PPO checks and loads before it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from transformers import AutoConfig, PreTrainedTokenizerBase

from rlhf.conversation import Renderer
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.models.checkpoint import base_folder, head_shapes, is_adapter_checkpoint, require_checkpoint
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.roles import Roles, SeparateRoles
from rlhf.ppo.shared import SharedRoles
from rlhf.pretrained import from_pretrained
from rlhf.rewards.loading import load_reward
from rlhf.training.whole import is_partitioned


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

    It cannot from an adapter, from a reward model of another tokenizer, or from one without a `score` layer.
    """
    vocabulary = tokenizer.get_vocab()
    for judge in judges:
        reads_tokens = not is_adapter_checkpoint(judge) and "score.weight" in head_shapes(judge)
        if reads_tokens and load_tokenizer(judge).get_vocab() == vocabulary:
            return judge
    if judges and os.environ.get("RANK", "0") == "0":
        print(
            f"value_from: {judges[0]} is an adapter, or does not read the policy's tokens one by one; the value starts "
            "from the policy with a new head",
            file=sys.stderr,
        )
    return None


def load_roles(
    policy: Path,
    helpfulness: str,
    safety: str,
    value_from: Path | None,
    accelerator: Accelerator,
    *,
    shared: bool,
    with_value: bool = True,
    adapter: AdapterConfig | None = None,
    quantization: Literal["nf4"] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> Roles:
    """The roles, separate or shared.

    Args:
        value_from: see `load_value_model`, and for shared roles `SharedRoles.load`.
        shared: adapters on one base.
        with_value: whether a value is learnt.
        adapter, quantization, dtype: of shared roles.
        seed: of new heads and adapters.

    Raises:
        InputError: separate roles of which one is an adapter, or shared ones that do not fit together.
    """
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
    device = "cpu" if is_partitioned(accelerator) else accelerator.device  # whole, they may not fit the device
    judges = (load_reward(spec, device=device) for spec in (helpfulness, safety))
    return SeparateRoles(load_policy(policy), load_policy(policy), value, *judges, accelerator)


def context_length(policy: Path) -> int | None:
    """Longest sequence the policy takes, where its config says; InputError where there is no checkpoint."""
    config = from_pretrained(AutoConfig, base_folder(require_checkpoint(policy))).get_text_config(decoder=True)
    length: int | None = getattr(config, "max_position_embeddings", None)
    return length


def load_fitting_prompts(
    field: str,
    source: str,
    renderer: Renderer,
    *,
    context: int | None,
    max_new_tokens: int,
    max_prompt_tokens: int | None,
) -> list[Prompt]:
    """The prompts of a source that leave the policy room for a whole answer and its end token.

    Args:
        field: name of the option, for messages.
        context: see `context_length`.
        max_prompt_tokens: longer prompts are left out and counted on stderr; None refuses those that do not fit.

    Raises:
        InputError: no prompts, none left, or one without room.
    """
    prompts = load_prompts(source)
    lengths = [len(ids) for ids in renderer.prompts([p.messages for p in prompts])]
    if max_prompt_tokens is not None:
        kept = [i for i, length in enumerate(lengths) if length <= max_prompt_tokens]
        if len(kept) < len(prompts) and os.environ.get("RANK", "0") == "0":
            print(f"{source}: {len(prompts) - len(kept)} of {len(prompts)} prompts are too long", file=sys.stderr)
        prompts, lengths = [prompts[i] for i in kept], [lengths[i] for i in kept]
    if not prompts:
        raise InputError(f"{field}: {source} has no prompts of at most {max_prompt_tokens} tokens; raise that limit")
    longest = max(range(len(prompts)), key=lambda i: lengths[i])
    if context is not None and max_new_tokens + min(lengths) >= context:
        raise InputError(
            f"{field}: even the shortest prompt of {source}, {min(lengths)} tokens, leaves no room for "
            f"{max_new_tokens} more in the model's context of {context}; lower max_new_tokens"
        )
    if context is not None and lengths[longest] + max_new_tokens >= context:
        room = context - max_new_tokens - 1
        way_out = f"set max_prompt_tokens to {room} to leave such prompts out" if room > 0 else "lower max_new_tokens"
        raise InputError(
            f"{field}: prompt {prompts[longest].id!r} of {source} has {lengths[longest]} tokens, which leaves no room "
            f"for {max_new_tokens} more in the model's context of {context}; {way_out}"
        )
    return prompts
