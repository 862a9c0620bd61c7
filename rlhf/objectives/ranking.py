"""The losses of a reward model: ranking with a margin, centring, and the safety label's cross-entropy.

Source: Llama 2 paper, section 3.2.2 (equations 1 and 2, appendix A.3.3). All are per item, so that
the caller divides by the count of the whole step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf.errors import InputError
from rlhf.objectives.margins import margin_table
from rlhf.objectives.shapes import require_same_shape


def margins_of(strengths: Sequence[str | None], margin: str | Mapping[str, float] = "small") -> Tensor:
    """The margin of each pair, (n,) float32, by its strength.

    Args:
        strengths: n of "significantly", "better", "slightly", "negligibly" or None.
        margin: name of a table of the paper, or a table of your own; see `margin_table`.

    Raises:
        InputError: unknown table or strength.
    """
    margins = margin_table(margin)
    unknown = [strength for strength in strengths if strength not in margins]
    if unknown:
        raise InputError(f"strength: must be one of {', '.join(str(s) for s in margins)}, got {unknown[0]!r}")
    return torch.tensor([margins[strength] for strength in strengths], dtype=torch.float32)


def ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """Loss of each pair, (n,) float32: -log sigmoid(chosen - rejected - margin). Paper, equation 2.

    Args:
        chosen: (n,) raw scores of the chosen answers, any float dtype.
        rejected: (n,) raw scores of the rejected answers.
        margin: (n,) from `margins_of`; None is 0 for all.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(chosen=chosen, rejected=rejected, margin=margin)
    difference = chosen.float() - rejected.float()
    if margin is not None:
        difference = difference - margin.to(difference)
    return -F.logsigmoid(difference)


def centering_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Penalty of each pair, (n,) float32: (chosen + rejected)^2, which draws the scores' mean to 0.

    The ranking loss leaves the scores free up to a constant. Source: Eisenstein et al. 2023, arXiv 2312.09244.

    Args:
        chosen: (n,) raw scores of the chosen answers, any float dtype.
        rejected: (n,) raw scores of the rejected answers.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(chosen=chosen, rejected=rejected)
    return (chosen.float() + rejected.float()).square()


def safety_loss(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Loss of each answer, (n,) float32: binary cross-entropy of the auxiliary safety head; 0 where there is no label.

    The paper (section 3.2.2) adds such a loss without a formula; decision 16 is this form.

    Args:
        logits: (n,) output of the safety head; above 0 means safe.
        labels: (n,) 1 for a safe answer, 0 for an unsafe one; anything where the mask is False.
        mask: (n,) bool, True where a label exists; None is everywhere.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(logits=logits, labels=labels, mask=mask)
    targets = labels.float()
    if mask is None:
        return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    targets = targets.masked_fill(~mask.bool(), 0.0)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return losses.masked_fill(~mask.bool(), 0.0)
