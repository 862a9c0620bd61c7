"""The loop of PPO: iterate; evaluate on held-out prompts, keep the best, stop in time, outlive a kill.

Llama 2 paper, section 3.2.3. What an iteration is: `rlhf.ppo.algorithm`. Light: no torch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.metrics import MetricsLog
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.saving import Saving
from rlhf.ppo.watch import Limit, Stop, limit_passed, warnings
from rlhf.stage.progress import progress_bar

if TYPE_CHECKING:
    from rlhf.ppo.algorithm import PPO


@dataclass(frozen=True)
class PPOResult:
    """Updates made, why they ended, the evaluation that was best (its checkpoint is kept), and the first one."""

    iterations: int
    stopped: Stop
    best_iteration: int
    best_reward: float
    first_reward: float


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
                judged = config.unfinished_score == "own" or figures["heldout_finished_share"] > 0
                if history.add(iteration, figures, allowed=beyond is None, judged=judged):
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
    best_judged: bool = True
    without_gain: int = 0

    def add(self, iteration: int, figures: dict[str, float], *, allowed: bool, judged: bool) -> bool:
        """Take note of an evaluation; True where it is `allowed` and the best so far.

        One that is not `judged`, whose reward is what reward models say of answers without an end where that is not to
        count, is better than no other, and worse than any that is.
        """
        self.evaluations.append(dict(figures))
        reward, first = figures["heldout_reward"], len(self.evaluations) == 1
        better = judged and (reward > self.best_reward or not self.best_judged)
        if allowed and (first or better):
            self.best_iteration, self.best_reward, self.best_judged, self.without_gain = iteration, reward, judged, 0
            return True
        self.without_gain += 1
        return False

    def result(self, iterations: int, stopped: Stop) -> PPOResult:
        first = self.evaluations[0]["heldout_reward"]
        return PPOResult(iterations, stopped, self.best_iteration, self.best_reward, first)


def prompt_stream(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """Prompts without end: a fresh permutation each time round."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        for i in torch.randperm(len(prompts), generator=generator).tolist():
            yield prompts[i]
