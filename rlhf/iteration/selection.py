"""What a round of rejection sampling drew and chose, in figures: `selection.json` and `selected.jsonl`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rlhf.conversation import Conversation
from rlhf.data.rows import Completion

if TYPE_CHECKING:
    from torch import Tensor


def selected_rows(selected: Sequence[Completion], dialogues: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
    """The rows of `selected.jsonl`: each chosen answer's dialogue, and where it comes from."""
    for row, messages in zip(selected, dialogues, strict=True):
        yield {"id": row.prompt_id, "messages": messages, "version": row.version, "reward": row.reward}


def selection_figures(
    drawn: Sequence[Completion],
    num_samples: int,
    used_safety: Tensor,
    candidates: Sequence[Completion],
    selected: Sequence[Completion],
) -> dict[str, Any]:
    """Figures of one round, plain JSON types; rewards are raw (before the sigmoid).

    Args:
        drawn: this version's scored answers, prompt after prompt, `num_samples` (K) of each.
        used_safety: (len(drawn),) bool: the reward is the safety score.
        candidates: answers that were chosen among, those of earlier versions included.
        selected: one answer a prompt, as `select_best` gives them.

    `curve` holds for k = 1, 2, 4, .., K the expectation over prompts of the best and of the median of k answers,
    unbiased from the K drawn (paper, figure 7), and the bound on the KL that choosing the best of k costs.
    """
    import torch

    from rlhf.objectives.best_of_n import expected_max, expected_median, kl_bound

    rewards = torch.tensor([row.reward for row in drawn]).view(-1, num_samples)
    powers = [2**e for e in range(num_samples.bit_length())]
    curve = [
        {
            "k": k,
            "max": expected_max(rewards, k).mean().item(),
            "median": expected_median(rewards, k).mean().item(),
            "kl_bound": kl_bound(k),
        }
        for k in sorted({*powers, num_samples})
    ]
    tokens = [len(row.token_ids) for row in drawn]
    return {
        "version": drawn[0].version,
        "prompts": len(rewards),
        "num_samples": num_samples,
        "temperature": drawn[0].temperature,
        "reward_model": drawn[0].reward_model,
        "mean_reward": rewards.mean().item(),
        "median_reward": curve[-1]["median"],
        "max_reward": curve[-1]["max"],
        "curve": curve,
        "mean_helpfulness": fmean(row.helpfulness for row in drawn),
        "mean_safety": fmean(row.safety for row in drawn),
        "gated_share": used_safety.float().mean().item(),
        "finished_share": fmean(row.finished for row in drawn),
        "mean_length": fmean(tokens),
        "candidates": len(candidates),
        "candidates_by_version": dict(Counter(row.version for row in candidates)),
        "selected": len(selected),
        "selected_by_version": dict(Counter(row.version for row in selected)),
        "selected_mean_reward": fmean(row.reward for row in selected) if selected else None,
        "selected_mean_length": fmean(len(row.token_ids) for row in selected) if selected else None,
        "prompts_without_answer": len(rewards) - len({row.prompt_id for row in selected}),
    }
