"""The figures of a round of rejection sampling: what was drawn, what was chosen among, what was chosen. Light."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, TypedDict

from rlhf.data.rows import Completion
from rlhf.data.suspicion import suspicious_selection
from rlhf.rejection.selection import Selection

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf.rejection.curves import CurvePoint


class RewardFigures(TypedDict, total=False):
    """Of the rewards of a round's answers, raw (before the sigmoid); none where early rejection gave answers up.

    curve: `rlhf.rejection.curves.reward_curve` of the drawn answers (paper, figure 7). mean_safety, gated_share (of the
    answers whose reward is the safety score): None without a safety model.
    """

    mean_reward: float
    median_reward: float
    max_reward: float
    curve: list[CurvePoint]
    mean_helpfulness: float
    mean_safety: float | None
    gated_share: float | None


class SelectionFigures(RewardFigures):
    """Of one round: what was drawn, what was chosen among, and what was chosen (None where nothing was).

    mean_length: tokens per answer. given_up_share: of the drawn answers, by early rejection.
    """

    version: str
    prompts: int
    num_samples: int
    temperature: float
    reward_model: str
    given_up_share: float
    finished_share: float
    mean_length: float
    candidates: int
    candidates_by_version: dict[str, int]
    left_out: dict[str, int]
    selected: int
    selected_by_version: dict[str, int]
    selected_finished_share: float | None
    selected_mean_reward: float | None
    selected_mean_length: float | None
    prompts_without_answer: int


class TooLongCounts(TypedDict):
    """prompts: without room for an answer, by the model whose context lacks it. scored_cut: dialogues cut for a reward
    model.
    """

    prompts: dict[str, int]
    scored_cut: int


class RoundFigures(SelectionFigures):
    """The content of selection.json: the same beside what the round read.

    gate_threshold: None without a safety model. no_room_share: of the answers, those that the context cut off.
    pool: version -> its answers.
    """

    gate_threshold: float | None
    no_room_share: float
    too_long: TooLongCounts
    pool: dict[str, int]
    pool_left_out: int


def selection_figures(
    drawn: Sequence[Completion],
    num_samples: int,
    used_safety: Tensor | None,
    candidates: Sequence[Completion],
    selection: Selection,
    rejected_at: Collection[int] = (),
) -> SelectionFigures:
    """Figures of one round. Where nothing was drawn, what it chose among takes the place of the drawn answers.

    Args:
        drawn: this version's scored answers, prompt after prompt, `num_samples` (K) of each.
        used_safety: (len(drawn),) bool: the reward is the safety score; None: there is no safety model.
        candidates: answers that were chosen among, those of earlier versions included, all scored by the same models.
        selection: what `select` made of them.
        rejected_at: tokens at which early rejection gave answers up: an unfinished one of such a length is one of them,
            and no part of `mean_length` and `finished_share`. There are no figures of the rewards then.
    """
    import torch

    from rlhf.rejection.curves import reward_curve

    selected, seen = selection.chosen, drawn or candidates
    written_out = [row for row in seen if row.finished or len(row.token_ids) not in rejected_at]
    of_rewards: RewardFigures = {} if rejected_at else {"mean_reward": fmean(row.reward for row in seen)}
    if drawn and not rejected_at:
        rewards = torch.tensor([row.reward for row in drawn]).view(-1, num_samples)
        texts = [row.text for row in drawn]
        curve = reward_curve(rewards, [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)])
        of_rewards |= {
            "mean_reward": rewards.mean().item(),
            "median_reward": curve[-1]["median"],
            "max_reward": curve[-1]["max"],
            "curve": curve,
            "mean_helpfulness": fmean(row.helpfulness for row in drawn),
            "mean_safety": None if used_safety is None else fmean(row.safety or 0.0 for row in drawn),
            "gated_share": None if used_safety is None else used_safety.float().mean().item(),
        }
    return {
        "version": seen[-1].version,
        "prompts": len({row.prompt_id for row in seen}),
        "num_samples": num_samples,
        "temperature": seen[-1].temperature,
        "reward_model": seen[-1].reward_model,
        **of_rewards,
        "given_up_share": 1 - len(written_out) / len(seen),
        "finished_share": fmean(row.finished for row in written_out),
        "mean_length": fmean(len(row.token_ids) for row in written_out),
        "candidates": len(candidates),
        "candidates_by_version": dict(Counter(row.version for row in candidates)),
        "left_out": dict(selection.left_out),
        "selected": len(selected),
        "selected_by_version": dict(Counter(row.version for row in selected)),
        "selected_finished_share": fmean(row.finished for row in selected) if selected else None,
        "selected_mean_reward": fmean(row.reward for row in selected) if selected else None,
        "selected_mean_length": fmean(len(row.token_ids) for row in selected) if selected else None,
        "prompts_without_answer": len({row.prompt_id for row in candidates} - {row.prompt_id for row in selected}),
    }


MOST_LENGTHENED = 1.5
"""Chosen answers so many times as long as those drawn: the reward likes length, and fine-tuning will teach it."""


def suspicious_choice(figures: SelectionFigures) -> list[str]:
    """Sentences about `selection_figures`: few prompts with an answer, answers chosen for their length."""
    prompts = figures["selected"] + figures["prompts_without_answer"]
    found = suspicious_selection(prompts - figures["prompts_without_answer"], prompts, figures["left_out"])
    chosen = figures["selected_mean_length"]
    if chosen is not None and chosen > MOST_LENGTHENED * figures["mean_length"] > 0:
        found.append(
            f"the chosen answers are {chosen / figures['mean_length']:.1f} times as long as "
            "those drawn; selection.max_length_ratio bounds that"
        )
    return found
