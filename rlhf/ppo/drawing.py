"""An engine that draws the answers of a policy in training: it is given the newest weights before each rollout."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from rlhf.conversation import Renderer
from rlhf.models.checkpoint.context import TooLong
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.policy import PPOPolicy
from rlhf.ppo.roles import Roles
from rlhf.sampling.engine.following import FollowingEngine
from rlhf.sampling.engine.sampler import let_go, shared_by
from rlhf.sampling.opening import Opening
from rlhf.sampling.source import PolicySource


class DrawingEngine:
    """Each process has an engine of its own, on its own GPU, which draws the answers to its share of the prompts; or as
    many processes as an engine has GPUs have one between them.

    The main process writes the newest adapter, or whole weights, into a folder of the stage, from which all engines
    load them. Only the draws are theirs: log-probabilities are computed by the policy in training (see
    `rlhf.ppo.experience`), so that the ratio of the first minibatch is exactly 1 whatever an engine rounds.

    Args:
        policy: where the training starts, with its engine.
        config: `rows` for each process, and fewer where an engine has fewer answers to draw, are written side by side.
        folder: for the newest weights; emptied first.
        renderer: see `rlhf.ppo.algorithm.PPO`; its tokenizer is saved with the weights.
        dtype: that the engine computes in; None: that of the mixed precision.

    Raises:
        InputError: the engine is not installed, or the processes cannot be dealt out to engines over several GPUs.
    """

    def __init__(
        self,
        policy: PPOPolicy,
        config: PPOConfig,
        folder: Path,
        accelerator: Accelerator,
        renderer: Renderer,
        *,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        too_long: TooLong = "cut",
    ) -> None:
        assert policy.engine is not None, "checked before"
        each = shared_by(policy.engine, "policy.engine")
        rows = min(config.rows * each, math.ceil(config.batch_size * each / accelerator.num_processes))
        source = PolicySource(checkpoint=policy.checkpoint, engine=policy.engine, dtype=dtype, rows=rows)
        self.sampler = FollowingEngine(source, Opening(accelerator.device, renderer, too_long))
        self._folder, self._accelerator, self._renderer = folder, accelerator, renderer
        self._written: int | None = None

    def follow(self, roles: Roles, steps: int) -> None:
        """Have the engines draw from the policy as it is now. Every process calls it.

        Args:
            steps: of the optimizer so far; where they are those of the last call the engines have these weights.
        """
        if steps == self._written:
            return
        newest = self._folder / f"{steps:06d}"
        if self._written is None and self._accelerator.is_main_process:  # of a broken-off attempt
            shutil.rmtree(self._folder, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        roles.save_policy(newest, self._renderer.tokenizer)
        let_go(self._accelerator.device)  # an engine of another process may start there
        self._accelerator.wait_for_everyone()
        self.sampler.follow(newest)
        if self._accelerator.is_main_process and self._written is not None:
            shutil.rmtree(self._folder / f"{self._written:06d}")
        self._written = steps
