"""The loop of PPO: sample, score, update; evaluate on held-out prompts, keep the best, stop in time, outlive a kill.

Llama 2 paper, section 3.2.3. What it leaves open: decisions 34 to 42, and `rlhf.ppo.config`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from accelerate import Accelerator

from rlhf.conversation import Renderer
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.metrics import MetricsLog
from rlhf.models.checkpoint.context import TooLong
from rlhf.objectives.policy import adapted_beta
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.experience import Minibatch, add_advantages, add_logprobs, make_minibatches
from rlhf.ppo.roles import Roles, WholeSampler
from rlhf.ppo.rollout import Environment, Rollout, prompt_stream, referee_figures, roll_out, rollout_figures
from rlhf.ppo.saving import Saving
from rlhf.ppo.update import update
from rlhf.ppo.watch import Limit, Stop, limit_passed, warnings
from rlhf.rewards.gate import Gate, GatedReward
from rlhf.rewards.protocol import RewardFunction
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage.progress import progress_bar

HELD_OUT_SEED = 1_000_003
"""Added to the sampling seed for held-out answers: every evaluation draws with the same numbers, no iteration does."""

HELD_OUT_FIGURES = (
    "reward", "helpfulness", "safety", "length", "finished_share", "no_room_share", "repetition", "kl", "kl_k3",
)  # fmt: skip


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
        renderer: of the policy's tokenizer, which value and reference share; with the limit of
            `Context.prompt_renderer`, as the trained prompts are those that were sampled from.
        sampling: no top-p, no top-k, no penalty. The policy is its distribution at the temperature (above 0), in the
            answers, trained and held out, and in every log-probability: ratio, KL and entropy are of it.
        referee: scores held-out answers and trains nothing: a policy that pleases the two judges alone shows there.
        gate: makes one reward of the two judges'.
        too_long: what becomes of an answer that a reward model's context does not hold.
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
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.seed = seed
        self.beta = config.beta
        self.roles = roles
        self.stepper = roles.prepare(config.optimizer, sampling.temperature)
        sampler = WholeSampler(roles, renderer, config.rows, too_long)
        reward = GatedReward(roles.helpfulness, roles.safety, gate or Gate(), too_long)
        self.environment = Environment(sampler, renderer, reward, sampling, accelerator, referee)
        size = config.optimizer.batch_size
        self.total_steps = config.iterations * config.optimizer.epochs * math.ceil(config.batch_size / size)

    def iterate(self, prompts: Sequence[Prompt], iteration: int) -> dict[str, float]:
        """Sample, score, update (left out where the policy has passed a limit); returns the figures to log."""
        clock = _Clock()
        rollouts = roll_out(
            prompts,
            self.environment,
            self.environment.sampling,
            self.config.samples_per_prompt,
            first_key=iteration * self.config.prompts_per_iteration,
        )
        figures = rollout_figures(rollouts) | {"beta": self.beta}
        seconds = {"seconds_rollout": clock.lap()}
        minibatches, measured = self._measure(rollouts, seed=self.seed + iteration)
        figures |= measured
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
        rollouts = roll_out(prompts, self.environment, sampling, 1)
        figures = rollout_figures(rollouts) | self._measure(rollouts, seed=0)[1]
        chosen = {name: figures[name] for name in HELD_OUT_FIGURES if name in figures}
        chosen |= referee_figures(prompts, rollouts, self.environment)
        return {f"heldout_{name}": value for name, value in chosen.items()}, rollouts

    def _measure(self, rollouts: Sequence[Rollout], seed: int) -> tuple[list[Minibatch], dict[str, float]]:
        pad = self.environment.renderer.pad_token_id
        minibatches = make_minibatches(rollouts, self.config, self.accelerator, pad, seed=seed)
        figures = add_logprobs(minibatches, self.stepper.model, self.roles.reference_logprobs, self.accelerator)
        return minibatches, figures

    def _learning_rate_at(self, step: int) -> float:
        return self.config.optimizer.learning_rate_at(step, self.total_steps)


def train_ppo(
    ppo: PPO, prompts: Sequence[Prompt], validation_prompts: Sequence[Prompt], log: MetricsLog, saving: Saving
) -> PPOResult:
    """Iterate until the iterations are done, the held-out reward no longer rises, or a limit is passed.

    Args:
        prompts: drawn in a fresh permutation each time round.
        validation_prompts: the first `validation_size` are evaluated on, before the first iteration, every
            `evaluate_every`, and after the last.
        log: one line an iteration; the held-out figures are of the policy before that iteration's update.
        saving: keeps the best policy, some held-out answers of each evaluation, and states to go on from.

    Raises:
        InputError: a reward function failed, three steps in a row were not finite, or the starting policy is beyond a
            limit, so that there is none to keep.
    """
    config = ppo.config
    history, start = _restore(ppo, log, saving)
    held_out = validation_prompts[: config.validation_size]
    stream = islice(prompt_stream(prompts, ppo.seed), start * config.prompts_per_iteration, None)
    with progress_bar(config.iterations, "ppo", "iteration", done=start, training=True) as progress:
        for iteration in range(start, config.iterations + 1):
            figures: dict[str, Any] = {}
            last = iteration == config.iterations
            if last or iteration % config.evaluate_every == 0:
                figures, answers = ppo.evaluate(held_out)
                saving.log_samples(iteration, held_out, answers)
                beyond = _held_out_limit(figures, config)
                if iteration == 0 and beyond is not None:
                    reached = figures["heldout_" + beyond.removeprefix("max_")]
                    raise InputError(
                        f"{beyond}: the starting policy is at {reached:.3g} on the held-out prompts, beyond "
                        f"{getattr(config, beyond):g} already; raise the limit"
                    )
                if history.add(iteration, figures, allowed=beyond is None):
                    saving.keep_best(iteration)
            ended = history.without_gain >= config.patience
            if not last and not ended:
                figures |= ppo.iterate(list(islice(stream, config.prompts_per_iteration)), iteration)
            if found := warnings(figures, history.evaluations):
                figures["warnings"] = found
                progress.write("\n".join(f"iteration {iteration}: {warning}" for warning in found))
            log.log(iteration, **figures)
            stopped: Stop | None = "patience" if ended else limit_passed(figures, config)
            if stopped is not None or last:
                return history.result(iteration, stopped or "iterations")
            progress.set_postfix(reward=f"{figures['reward']:.3f}", kl=f"{figures['kl']:.3f}", refresh=False)
            progress.update()
            if (iteration + 1) % config.checkpoint_every == 0:
                saving.save(iteration + 1, {"beta": ppo.beta, "history": asdict(history)})
    raise AssertionError("the last iteration returns")


def _restore(ppo: PPO, log: MetricsLog, saving: Saving) -> tuple[_History, int]:
    """The history and iteration that the newest state left, or those of a start."""
    state = saving.restore()
    start: int = 0 if state is None else state["iteration"]
    log.go_on(start)
    if state is None:
        return _History(), start
    ppo.beta = state["beta"]
    return _History(**state["history"]), start


def _held_out_limit(figures: dict[str, float], config: PPOConfig) -> Limit | None:
    """The limit that the evaluated policy has passed; such a one is never the best."""
    return limit_passed({n: figures.get(f"heldout_{n}", 0.0) for n in ("kl", "repetition")}, config)


@dataclass
class _History:
    """The evaluations so far, which was best, and how many have passed since."""

    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_iteration: int = 0
    best_reward: float = -math.inf
    without_gain: int = 0

    def add(self, iteration: int, figures: dict[str, float], *, allowed: bool) -> bool:
        """Take note of an evaluation; True where it is `allowed` and the best so far."""
        self.evaluations.append(dict(figures))
        if allowed and figures["heldout_reward"] > self.best_reward:
            self.best_iteration, self.best_reward, self.without_gain = iteration, figures["heldout_reward"], 0
            return True
        self.without_gain += 1
        return False

    def result(self, iterations: int, stopped: Stop) -> PPOResult:
        first = self.evaluations[0]["heldout_reward"]
        return PPOResult(iterations, stopped, self.best_iteration, self.best_reward, first)


class _Clock:
    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, rounded to milliseconds."""
        before, self.last = self.last, time.perf_counter()
        return round(self.last - before, 3)
