"""Rules that stop PPO or warn: pure functions of its figures. Light: no torch.

What users of other trainers saw too late: policies that left the reference behind, repeated themselves, pleased
the reward models alone, or were trained with wrong probabilities.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from rlhf.data.suspicion import suspicious_answers
from rlhf.ppo.config import PPOConfig

Figures = Mapping[str, Any]
Limit = Literal["max_kl", "max_repetition"]
Stop = Literal["iterations", "patience"] | Limit

RATIO_TOLERANCE = 1e-3
"""How far from 1 the mean ratio of the first minibatch may be: rounding in bfloat16 stays below it."""

REPETITIVE = 0.2
"""Share of repeated 4-grams from which on a text reads as repetitive; of people's texts it is near 0.01."""

FARTHEST_KL = 20.0
"""Nats per answer from the reference on held-out prompts: beyond them a policy has mostly left the language it had."""

NEAREST_KL = 1.0
"""Nats per answer from the reference: a policy that is nearer has hardly been trained."""

HELD_OUT = "its held-out answers"
LENGTH_CHANGE = 1.5
"""So many times longer or shorter than the starting policy's answers: the reward model likes lengths."""


class PPOFigures(TypedDict):
    """The content of ppo.json.

    iterations: updates made. stopped: what ended them. best_iteration: whose checkpoint was kept, 0 is the start;
    best_reward: its held-out reward; first_reward: the start's. too_long: "prompts" -> what was done -> how many.
    """

    iterations: int
    stopped: Stop
    best_iteration: int
    best_reward: float
    first_reward: float
    too_long: dict[str, dict[str, int]]


def repeated_share(ids: Sequence[Hashable], n: int = 4) -> float:
    """1 - distinct n-grams / n-grams: 0 repeats nothing (also where there is no n-gram), near 1 says one thing again.

    Source: seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319, section 6).
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def limit_passed(figures: Figures, config: PPOConfig) -> Limit | None:
    """The option whose limit the figures of some answers (kl, repetition) pass; their policy is not to be trained."""
    if config.max_kl is not None and figures.get("kl", 0.0) > config.max_kl:
        return "max_kl"
    if config.max_repetition is not None and figures.get("repetition", 0.0) > config.max_repetition:
        return "max_repetition"
    return None


def warnings(figures: Figures, evaluations: Sequence[Figures]) -> list[str]:
    """What deserves a look, a sentence each.

    Args:
        figures: of this iteration.
        evaluations: heldout_* figures of all evaluations so far, the newest last; looked at where `figures` has them.
    """
    found = []
    if abs(figures.get("first_ratio", 1.0) - 1) > RATIO_TOLERANCE:
        found.append(
            f"the ratio in the first minibatch is {figures['first_ratio']:.4f}, not 1: the model that is trained does "
            "not repeat its own probabilities (dropout? a quantised layer? another precision?)"
        )
    if figures.get("skipped", 0) > 0:
        found.append(f"{figures['skipped']} steps were left out, their loss or gradient was not finite")
    if "heldout_reward" in figures and evaluations:
        found += _held_out_warnings(evaluations)
    return found


def _held_out_warnings(evaluations: Sequence[Figures]) -> list[str]:
    first, last = evaluations[0], evaluations[-1]
    found = []
    repetition = last.get("heldout_repetition", 0.0)
    if repetition > REPETITIVE and repetition > 2 * first.get("heldout_repetition", 0.0):
        found.append(
            f"the answers repeat themselves: {repetition:.0%} of their 4-grams, at first "
            f"{first.get('heldout_repetition', 0.0):.0%}; raise beta or stop earlier"
        )
    if "heldout_referee" in last:
        best = max(evaluations, key=lambda figures: figures["heldout_referee"])
        fallen = last["heldout_referee"] < best["heldout_referee"] - 2 * last["heldout_referee_error"]
        if fallen and last["heldout_reward"] > best["heldout_reward"]:
            found.append(
                f"the reward rose from {best['heldout_reward']:.3f} to {last['heldout_reward']:.3f} while the referee "
                f"fell from {best['heldout_referee']:.3f} to {last['heldout_referee']:.3f}: the policy may please the "
                "reward models alone; take an earlier checkpoint, raise beta or train new reward models"
            )
    return found


def suspicious_run(best_iteration: int, metrics: Sequence[Figures]) -> list[str]:
    """What looks wrong about a finished run, a sentence each.

    Args:
        best_iteration: whose policy is kept.
        metrics: all lines of its log; those of evaluations have heldout_* figures.
    """
    evaluations = [figures for figures in metrics if "heldout_reward" in figures]
    best = next((figures for figures in evaluations if figures["step"] == best_iteration), None)
    found = list(dict.fromkeys(warning for figures in metrics for warning in figures.get("warnings", ())))
    if best_iteration == 0:
        found.append(_no_gain(evaluations, metrics))
    if best is None:
        return found
    if (kl := best.get("heldout_kl") or 0.0) > FARTHEST_KL:
        found.append(f"the policy kept is {kl:.1f} nats per answer from the reference; raise beta, or set max_kl")
    if (finished := best.get("heldout_finished_share")) is not None:
        found += suspicious_answers(finished, no_room=best.get("heldout_no_room_share", 0.0), whose=HELD_OUT)
    before, after = evaluations[0].get("heldout_length"), best.get("heldout_length")
    if before and after and not 1 / LENGTH_CHANGE <= after / before <= LENGTH_CHANGE:
        found.append(f"its held-out answers went from {before:.0f} to {after:.0f} tokens")
    return found


def _no_gain(evaluations: Sequence[Figures], metrics: Sequence[Figures]) -> str:
    """That the start was kept, what the log shows of why, and what to try."""
    said = ["the policy kept is the one it started from: no evaluation had a better reward"]
    if len(evaluations) > 1:
        first, last = evaluations[0], evaluations[-1]
        best = max(evaluations[1:], key=lambda figures: figures["heldout_reward"])
        lost, error = first["heldout_reward"] - best["heldout_reward"], best.get("heldout_reward_error")
        if lost < 0:
            said[0] = said[0].replace("evaluation had", "evaluation that counts had")
            said[0] += " (a higher one was of a policy beyond a limit, or of answers without an end)"
        else:
            said[0] += f" ({first['heldout_reward']:.3f} at its start, {best['heldout_reward']:.3f} at most later)"
            if error and lost < 2 * error:
                said.append(f"Standard error {error:.2g}: more validation prompts")
        moved = {
            name: last[key] - first[key] for name in ("helpfulness", "safety") if (key := f"heldout_{name}") in last
        }
        if len(moved) == 2 and min(moved.values()) < 0 < max(moved.values()):
            both = ", ".join(f"{name} {change:+.3f}" for name, change in moved.items())
            said.append(f"{both.capitalize()}: one pays for the other, see gate_sweep")
        if (kl := last.get("heldout_kl")) is not None:
            near = "more ppo.iterations, a higher learning rate or a lower ppo.beta"
            said.append(
                f"KL {kl:.1f} nats: {near if kl < NEAREST_KL else 'a higher ppo.beta or a lower learning rate'}"
            )
    learnt = [value for row in metrics if (value := row.get("explained_variance")) is not None]
    if learnt and learnt[-1] <= 0:
        said.append(f"Explained variance {learnt[-1]:.2f}: more ppo.iterations, or ppo.estimator rloo")
    return ". ".join([*said, 'See "When it gains nothing" of docs/recipes/ppo.md'])
