"""A reward function from what a user names: a checkpoint folder, an import path of their own, or an ensemble's file.

torch is loaded when called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf.conversation import Conversation, without_thoughts
from rlhf.errors import InputError
from rlhf.imports import ANYTHING, import_object, own_code
from rlhf.models.checkpoint.folder import require_reward_head
from rlhf.models.checkpoint.labels import writes_text
from rlhf.paths import model_place, require_files
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.specs import is_ensemble, is_import_path, read_ensemble

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

EXAMPLES = "rlhf.rewards.examples"
"""The module whose reward functions are treated as a user's own: they stand for those."""


def load_reward(
    spec: str | os.PathLike[str],
    *,
    batch_tokens: int | None = None,
    device: object = None,
    dtype: str | None = None,
    accelerator: Accelerator | None = None,
) -> RewardFunction:
    """The reward function that `spec` names.

    Args:
        spec: a reward-model folder (any sequence-classification checkpoint with one label, or two that say which is the
            better answer's; it brings its own tokenizer and chat template, and what its context does not hold is cut,
            see `Renderer`; others' kinds without a template: `rlhf.rewards.foreign`), or `package.module:attribute`,
            found from the working directory too: a function that scores, or a class whose instances do (called without
            arguments); or the YAML or JSON file of an ensemble of these (`rlhf.rewards.specs.EnsembleConfig`).
        batch_tokens: for a checkpoint, rows x padded length of one forward pass; None: by the device
            (`rlhf.models.batching`).
        device: for a checkpoint; None is the accelerator's, or the GPU where there is one.
        dtype: that a checkpoint's weights are held in; None: that of the mixed precision on the device
            (`rlhf.training.accelerator.frozen_dtype`).
        accelerator: of processes that load it together and make each call of it together, with as many conversations as
            each has (`rlhf.rewards.distributed`). Under ZeRO-3 each then holds a share of a reward model's weights,
            unless they are in 4 bit. None: they are whole, and this process scores when it likes.

    Raises:
        InputError: nothing there, a checkpoint without score head, an import that fails, something not callable.
    """
    text = os.fspath(model_place(spec))
    if is_import_path(text):
        return _imported(text)
    if is_ensemble(text):
        return _ensemble(text, batch_tokens=batch_tokens, device=device, dtype=dtype, accelerator=accelerator)
    import torch

    from rlhf.models.reward_model import RewardModel
    from rlhf.rewards.scoring import RewardModelFunction
    from rlhf.training.accelerator import frozen_dtype
    from rlhf.training.whole import holds_4_bit, is_partitioned

    device = accelerator.device if device is None and accelerator is not None else device
    target: Any = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if foreign := _foreign(text, target, batch_tokens):
        return foreign
    reward = RewardModelFunction.of(RewardModel.load(text, dtype=dtype or frozen_dtype(target)), text, batch_tokens)
    if accelerator is not None and is_partitioned(accelerator) and not holds_4_bit(reward.model):
        reward.divide(accelerator)  # whole it may not fit the device
    else:
        reward.model.to(target)
    return reward


def _foreign(folder: str, device: object, batch_tokens: int | None) -> RewardFunction | None:
    """The reward function of a checkpoint that reads no chat template; None: it reads one, or has to."""
    from rlhf.models.policy import load_tokenizer
    from rlhf.rewards.foreign import ChoiceReward, PairReward

    if writes_text(folder):
        return ChoiceReward(folder, device, batch_tokens)
    if "score.weight" in require_reward_head(folder) or load_tokenizer(folder).chat_template:
        return None
    return PairReward(folder, device, batch_tokens)


def _ensemble(file: str, **options: Any) -> RewardFunction:
    from rlhf.rewards.ensembles import RewardEnsemble

    require_files(reward=file)
    config = read_ensemble(file)
    members = [load_reward(member, **options) for member in config.members]
    return RewardEnsemble(members, config.uncertainty_weight)


def _imported(spec: str) -> RewardFunction:
    found = import_object("reward", spec)
    with own_code("reward", spec, "()"):
        reward = found() if isinstance(found, type) else found
    if not callable(reward):
        raise InputError(f"reward: {spec} is a {type(reward).__name__}; name a function or a class of reward functions")
    module = type(reward).__module__
    ours = module.startswith("rlhf.") and module != EXAMPLES
    return reward if ours else OwnReward(reward, spec)


class OwnReward:
    """A reward function of the user's own, with its attributes; what it raises is a sentence (InputError).

    It gets answers without their thoughts, as reward models do.

    Args:
        reward: what scores.
        spec: its import path.
    """

    def __init__(self, reward: RewardFunction, spec: str) -> None:
        self.reward = reward
        self._spec = spec
        with own_code("reward", f"{spec}.__name__"):
            self.__name__ = getattr(reward, "__name__", None) or type(reward).__name__

    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        with own_code("reward", self._spec):
            plain = [without_thoughts(conversation) for conversation in conversations]
            return self.reward(conversations if plain == list(conversations) else plain)

    def __getattr__(self, name: str) -> Any:
        if name == "reward" or name.startswith("__"):  # not made yet: a copy being unpacked
            raise AttributeError(name)
        try:
            return getattr(self.reward, name)
        except AttributeError:
            raise
        except ANYTHING as error:  # of a property, or a __getattr__ of its own
            raise InputError(f"reward: {self._spec}.{name} fails ({type(error).__name__}: {error})") from error
