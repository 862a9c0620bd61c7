"""The loop of PPO: sample, score, update; evaluate on held-out prompts, keep the best, stop in time.

Llama 2 paper, section 3.2.3. What it leaves open is in RECIPE section 5 and in `rlhf.ppo.config`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Any, Literal

from accelerate import Accelerator
from tqdm import tqdm

from rlhf.conversation import Renderer
from rlhf.data.rows import Prompt
from rlhf.metrics import MetricsLog
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.experience import add_experience, make_minibatches
from rlhf.ppo.roles import Roles
from rlhf.ppo.rollout import Environment, prompt_stream, roll_out, rollout_figures
from rlhf.ppo.update import update
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams

HELD_OUT_SEED = 1_000_003
"""Added to the sampling seed for held-out answers: every evaluation draws with the same numbers, no iteration does."""


Stop = Literal["iterations", "patience", "max_kl"]


@dataclass(frozen=True)
class PPOResult:
    """Updates made, why they ended, the evaluation that was best (its checkpoint is kept), and the first one."""

    iterations: int
    stopped: Stop
    best_iteration: int
    best_reward: float
    first_reward: float


class PPO:
    """Policy, value, reference and judges, ready to iterate.

    Args:
        roles: who they are (`rlhf.ppo.roles`).
        renderer: of the policy's tokenizer, which value and reference share.
        sampling: temperature 1, no top-p, no top-k: the ratio assumes the policy's own distribution.
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
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.seed = seed
        self.roles = roles
        self.stepper = roles.prepare(config.optimizer)
        sampler = InProcessSampler(roles.policy, renderer, config.sampling_batch_size)
        self.environment = Environment(sampler, renderer, roles.helpfulness, roles.safety, sampling, accelerator)
        size = config.optimizer.batch_size
        self.total_steps = config.iterations * config.optimizer.epochs * math.ceil(config.batch_size / size)

    def iterate(self, prompts: Sequence[Prompt], iteration: int) -> dict[str, float]:
        """Sample, score, update (left out where the policy is beyond max_kl); returns the figures to log."""
        clock = _Clock()
        with self.roles.gathered():
            rollouts = roll_out(
                prompts,
                self.environment,
                self.environment.sampling,
                self.config.samples_per_prompt,
                first_key=iteration * self.config.prompts_per_iteration,
            )
        figures = rollout_figures(rollouts)
        seconds = {"seconds_rollout": clock.lap()}
        pad = self.environment.renderer.pad_token_id
        minibatches = make_minibatches(rollouts, self.config, self.accelerator, pad, seed=self.seed + iteration)
        figures |= add_experience(
            minibatches, self.stepper.model, self.roles.reference_logprobs, self.config, self.accelerator
        )
        seconds["seconds_experience"] = clock.lap()
        if not self.beyond_limit(figures["kl"]):
            figures |= update(self.stepper, minibatches, self.config, self._learning_rate_at)
            seconds["seconds_update"] = clock.lap()
        return figures | seconds

    def evaluate(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Mean gated reward and KL of one answer to each held-out prompt, drawn with the same numbers every time."""
        sampling = replace(self.environment.sampling, seed=self.environment.sampling.seed + HELD_OUT_SEED)
        with self.roles.gathered():
            rollouts = roll_out(prompts, self.environment, sampling, 1)
        pad = self.environment.renderer.pad_token_id
        minibatches = make_minibatches(rollouts, self.config, self.accelerator, pad, seed=0)
        model = add_experience(
            minibatches, self.stepper.model, self.roles.reference_logprobs, self.config, self.accelerator
        )
        return {"heldout_reward": fmean(r.reward for r in rollouts), "heldout_kl": model["kl"]}

    def beyond_limit(self, kl: float) -> bool:
        """Whether `kl` (nats an answer) is more than the config allows."""
        return self.config.max_kl is not None and kl > self.config.max_kl

    def _learning_rate_at(self, step: int) -> float:
        return self.config.optimizer.learning_rate_at(step, self.total_steps)


def train_ppo(
    ppo: PPO,
    prompts: Sequence[Prompt],
    validation_prompts: Sequence[Prompt],
    log: MetricsLog,
    keep_best: Callable[[], None],
) -> PPOResult:
    """Iterate until the iterations are done, the held-out reward no longer rises, or the KL passes its limit.

    Args:
        prompts: drawn in a fresh permutation each time round.
        validation_prompts: the first `validation_size` are evaluated on, before the first iteration, every
            `evaluate_every`, and after the last.
        log: one line an iteration; the held-out figures are of the policy before that iteration's update.
        keep_best: called on every process when the held-out reward is the best so far; saves the policy.

    Raises:
        InputError: a reward function failed, or three steps in a row were not finite.
    """
    config = ppo.config
    stopper = _Stopper(config.patience)
    held_out = validation_prompts[: config.validation_size]
    stream = prompt_stream(prompts, ppo.seed)
    quiet = not ppo.accelerator.is_local_main_process
    with tqdm(total=config.iterations, desc="ppo", disable=quiet, mininterval=1.0) as progress:
        for iteration in range(config.iterations + 1):
            figures: dict[str, Any] = {}
            last = iteration == config.iterations
            if last or iteration % config.evaluate_every == 0:
                figures = ppo.evaluate(held_out)
                allowed = not ppo.beyond_limit(figures["heldout_kl"])
                if stopper.is_best(iteration, figures["heldout_reward"], allowed):
                    keep_best()
            if not last and not stopper.out_of_patience:
                figures |= ppo.iterate(list(islice(stream, config.prompts_per_iteration)), iteration)
            log.log(iteration, **figures)
            if stopper.out_of_patience:
                return stopper.result(iteration, "patience")
            if ppo.beyond_limit(figures.get("kl", 0.0)):
                return stopper.result(iteration, "max_kl")
            if not last:
                progress.update()
                progress.set_postfix(reward=f"{figures['reward']:.3f}", kl=f"{figures['kl']:.3f}")
    return stopper.result(config.iterations, "iterations")


class _Stopper:
    """Which evaluation was best, and how many have passed since."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.rewards: list[float] = []
        self.best_iteration = 0
        self.best_reward = -math.inf
        self.without_gain = 0

    def is_best(self, iteration: int, reward: float, allowed: bool) -> bool:
        """Take note of an evaluation; one that is not `allowed` is never the best."""
        self.rewards.append(reward)
        if allowed and reward > self.best_reward:
            self.best_iteration, self.best_reward, self.without_gain = iteration, reward, 0
            return True
        self.without_gain += 1
        return False

    @property
    def out_of_patience(self) -> bool:
        return self.without_gain >= self.patience

    def result(self, iterations: int, stopped: Stop) -> PPOResult:
        return PPOResult(iterations, stopped, self.best_iteration, self.best_reward, self.rewards[0])


class _Clock:
    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, rounded to milliseconds."""
        before, self.last = self.last, time.perf_counter()
        return round(self.last - before, 3)
