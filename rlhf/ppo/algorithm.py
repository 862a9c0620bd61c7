"""One iteration of PPO: sample, score, update; and the evaluation on held-out prompts.

Llama 2 paper, section 3.2.3. What it leaves open: decisions 34 to 42, and `rlhf.ppo.config`. The loop around it:
`rlhf.ppo.loop`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from accelerate import Accelerator

from rlhf.conversation import Renderer
from rlhf.data.rows import Prompt
from rlhf.models.checkpoint.context import TooLong
from rlhf.objectives.policy import adapted_beta
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.drawing import DrawingEngine
from rlhf.ppo.experience import (
    Minibatch,
    add_advantages,
    add_baselines,
    add_logprobs,
    held_out_rewards,
    make_minibatches,
)
from rlhf.ppo.roles import Roles, WholeSampler
from rlhf.ppo.rollout import Environment, Rollout, referee_figures, roll_out, rollout_figures, standard_error
from rlhf.ppo.update import update
from rlhf.ppo.watch import limit_passed
from rlhf.rewards.gate import Gate, GatedReward
from rlhf.rewards.protocol import RewardFunction
from rlhf.sampling.protocol import SamplingParams

HELD_OUT_SEED = 1_000_003
"""Added to the sampling seed for held-out answers: every evaluation draws with the same numbers, no iteration does."""

HELD_OUT_FIGURES = (
    "reward", "helpfulness", "safety", "length", "finished_share", "no_room_share", "repetition", "kl", "kl_k3",
)  # fmt: skip


class PPO:
    """Policy, value, reference and judges, ready to iterate.

    Args:
        roles: who they are (`rlhf.ppo.roles`).
        renderer: of the policy's tokenizer, which value and reference share; with the limit of
            `Context.prompt_renderer`, as the trained prompts are those that were sampled from.
        sampling: no top-p, no top-k, no penalty. The policy is its distribution at the temperature (above 0), in the
            answers, trained and held out, and in every log-probability: ratio, KL and entropy are of it.
        referee: scores held-out answers and trains nothing: a policy that pleases the two judges alone shows there. One
            of a checkpoint is loaded with the accelerator (`rlhf.rewards.loading.load_reward`).
        gate: makes one reward of the two judges'.
        too_long: what becomes of an answer that a reward model's context does not hold.
        engine: draws the answers; None: the policy itself does.
    """

    def __init__(
        self,
        roles: Roles,
        renderer: Renderer,
        config: PPOConfig,
        sampling: SamplingParams,
        accelerator: Accelerator,
        *,
        seed: int = 0,
        referee: RewardFunction | None = None,
        gate: Gate | None = None,
        too_long: TooLong = "cut",
        engine: DrawingEngine | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.seed = seed
        self.beta = config.beta
        self.roles = roles
        self.stepper = roles.prepare(config.optimizer, sampling.temperature)
        self._engine = engine
        sampler = WholeSampler(roles, renderer, config.rows, too_long) if engine is None else engine.sampler
        reward = GatedReward(roles.helpfulness, roles.safety, gate or Gate(), too_long)
        self.environment = Environment(sampler, renderer, reward, sampling, accelerator, referee)
        size = config.optimizer.batch_size
        self.total_steps = config.iterations * config.optimizer.epochs * math.ceil(config.batch_size / size)

    def close(self) -> None:
        """Stop the engine, if there is one."""
        if self._engine is not None:
            self._engine.sampler.close()

    def iterate(self, prompts: Sequence[Prompt], iteration: int) -> dict[str, float]:
        """Sample, score, update (left out where the policy has passed a limit); returns the figures to log."""
        clock = _Clock()
        first_key = iteration * self.config.prompts_per_iteration
        rollouts = self._roll_out(
            prompts, self.environment.sampling, self.config.samples_per_prompt, first_key=first_key
        )
        figures = rollout_figures(rollouts) | {"beta": self.beta}
        seconds = {"seconds_rollout": clock.lap()}
        minibatches, measured = self._measure(rollouts, seed=self.seed + iteration)
        figures |= measured
        if self.config.learns_value:
            add_baselines(minibatches, self.config, self.accelerator, self.beta)
        figures |= add_advantages(minibatches, self.config, self.accelerator, self.beta)
        seconds["seconds_experience"] = clock.lap()
        if limit_passed(figures, self.config) is None:
            figures |= update(self.stepper, minibatches, self.config, self._learning_rate_at)
            seconds["seconds_update"] = clock.lap()
        if self.config.target_kl is not None:
            self.beta = adapted_beta(self.beta, figures["kl"], self.config.target_kl)
        return figures | seconds

    def evaluate(self, prompts: Sequence[Prompt]) -> tuple[dict[str, float], list[Rollout]]:
        """heldout_* figures of one answer to each held-out prompt, drawn with the same numbers every time."""
        sampling = replace(self.environment.sampling, seed=self.environment.sampling.seed + HELD_OUT_SEED)
        rollouts = self._roll_out(prompts, sampling, 1)
        figures = rollout_figures(rollouts) | self._measure(rollouts, seed=0)[1]
        chosen = {name: figures[name] for name in HELD_OUT_FIGURES if name in figures}
        judged = held_out_rewards(rollouts, self.config)
        chosen |= {"reward": fmean(judged), "reward_error": standard_error(judged)}
        chosen |= referee_figures(prompts, rollouts, self.environment)
        return {f"heldout_{name}": value for name, value in chosen.items()}, rollouts

    def _roll_out(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, num_samples: int, first_key: int = 0
    ) -> list[Rollout]:
        """`roll_out` of the policy as it is now."""
        if self._engine is not None:
            self._engine.follow(self.roles, self.stepper.steps)
        return roll_out(prompts, self.environment, sampling, num_samples, first_key)

    def _measure(self, rollouts: Sequence[Rollout], seed: int) -> tuple[list[Minibatch], dict[str, float]]:
        pad = self.environment.renderer.pad_token_id
        minibatches = make_minibatches(rollouts, self.config, self.accelerator, pad, seed=seed)
        figures = add_logprobs(minibatches, self.stepper.model, self.roles.reference_logprobs, self.accelerator)
        return minibatches, figures

    def _learning_rate_at(self, step: int) -> float:
        return self.config.optimizer.learning_rate_at(step, self.total_steps)


class _Clock:
    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, rounded to milliseconds."""
        before, self.last = self.last, time.perf_counter()
        return round(self.last - before, 3)
