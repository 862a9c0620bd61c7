"""Train a reward model on preferences: the ranking loss with margins, and the safety labels' loss beside it.

Llama 2 paper, section 3.2.2. `helpfulness.py` and `safety.py` say on which rows. The paper does not
say how the auxiliary loss is averaged: here a pair's is the mean over its labelled answers (0 without one), and like
the ranking loss it is averaged over pairs, so that a pair weighs the same with one or both of its answers labelled
(decision 17).
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.data.rows import STRENGTHS, Preference
from rlhf.metrics import MetricsLog
from rlhf.models.batching import pad_rows
from rlhf.models.packing import pack_rows
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.objectives.ranking import centering_penalty, margins_of, ranking_loss, safety_loss
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.pairs import Pair, render_pairs
from rlhf.rewards.training.table import PairTable
from rlhf.rewards.training.tokenized import Tokenizing
from rlhf.training.accelerator import frozen_dtype
from rlhf.training.kept import States
from rlhf.training.loop import Task, TrainingResult, train
from rlhf.training.step import Batch


def train_reward_model(
    policy: str | os.PathLike[str],
    preferences: Sequence[Preference],
    config: RewardTrainingConfig,
    accelerator: Accelerator,
    log: MetricsLog | None = None,
    *,
    safety_head: bool,
    seed: int,
) -> RewardModel:
    """`train_on_pairs` of preferences in memory.

    Args:
        preferences: the same on every process, already mixed.

    Raises:
        InputError: a row too long for the model (see `RewardTrainingConfig`).
    """
    pairs = PairTable.of(fitting_pairs(policy, preferences, config, "preferences"))
    return train_on_pairs(policy, pairs, config, accelerator, log, safety_head=safety_head, seed=seed)


def train_on_pairs(
    policy: str | os.PathLike[str],
    pairs: PairTable,
    config: RewardTrainingConfig,
    accelerator: Accelerator,
    log: MetricsLog | None = None,
    *,
    safety_head: bool,
    seed: int,
    states: Path | None = None,
    result: TrainingResult | None = None,
) -> RewardModel:
    """Start from the policy's checkpoint with new heads, and train on all pairs; returns it in eval mode.

    Logged a step, means over its pairs: loss, ranking_loss, accuracy (a tie is half), score_difference (chosen less
    rejected); with a centring weight centering_penalty, with a safety head safety_loss too.

    Args:
        policy: checkpoint folder of a policy, or of a reward model to go on with.
        pairs: of its tokenizer and template, none longer than it takes; the same on every process, already mixed.
        safety_head: add the auxiliary head and its loss.
        seed: of the heads and of the order of the pairs.
        states: folder for states to go on from after a kill, one every config.checkpoint_every steps; None: no states.
        result: what the loop counted is put here.
    """
    frozen = config.adapter is not None and not config.adapter.merge  # what is merged is added in float32
    model = RewardModel.from_policy(
        policy,
        safety_head=safety_head,
        seed=seed,
        adapter=config.adapter,
        quantization=config.quantization,
        dtype=frozen_dtype(accelerator.device) if frozen else "float32",
    )
    kept = None if states is None else States(states, config.checkpoint_every)
    trained = train(
        model,
        pairs,
        pair_task(config, load_tokenizer(policy).pad_token_id),
        config.optimizer,
        accelerator,
        log,
        seed=seed,
        states=kept,
        shown=lambda pair: pair.preference.to_dict(),
    )
    if result is not None:
        vars(result).update(vars(trained), cut=pairs.cut())
    return model.eval()


def suspicious_margins(strengths: Collection[str | None], config: RewardTrainingConfig) -> list[str]:
    """A sentence where a margin is asked for and no pair says how much better its chosen answer is.

    Args:
        strengths: those of the pairs.
    """
    if set(strengths) <= {None} and any(margins_of(list(STRENGTHS), config.margin).tolist()):
        return [
            f"training.margin is {config.margin!r}, but no pair says how much better its chosen answer is, so that the "
            "loss had no margin: nothing is lost; set training.margin to none, or give the pairs a strength"
        ]
    return []


def fitting_pairs(
    policy: str | os.PathLike[str], rows: Sequence[Preference], config: RewardTrainingConfig, name: str
) -> list[Pair]:
    """Rows in memory as training has them: without the oldest turns where too long, or refused or skipped.

    Args:
        policy: checkpoint folder that the reward model starts from.
        name: of the field, for messages.
    """
    tokenizing = Tokenizing(policy, config)
    return render_pairs(rows, tokenizing.renderer, tokenizing.limit, config.too_long, name)


def pair_task(config: RewardTrainingConfig, pad_id: int) -> Task[Pair]:
    """What `rlhf.training.loop.train` needs: 2n rows per forward pass, chosen first, a pair one group; it weighs 1."""

    def collate(pairs: Sequence[Pair]) -> Batch:
        ids, mask = pad_rows([p.chosen for p in pairs] + [p.rejected for p in pairs], pad_id)
        rows = [p.preference for p in pairs]
        labels = [[r.chosen_safe for r in rows], [r.rejected_safe for r in rows]]
        known = [[math.nan if label is None else float(label) for label in side] for side in labels]
        margins = margins_of([r.strength for r in rows], config.margin)
        packed = pack_rows(ids, mask, torch.arange(len(pairs)).repeat(2))
        inputs = {"input_ids": ids, "attention_mask": mask, "packed": packed}
        return inputs | {"margin": margins, "safe": torch.tensor(known)}

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "packed")})
        weights = config.safety_loss_weight, config.centering_weight
        return pair_losses(output.score, output.safety_logit, batch["margin"], batch["safe"], *weights)

    return Task(collate=collate, loss=loss, weight=lambda pair: 1.0, length=lambda pair: pair.length)


def pair_losses(
    scores: Tensor,
    safety_logits: Tensor | None,
    margin: Tensor,
    safe: Tensor,
    safety_loss_weight: float,
    centering_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the loss over n pairs, and sums of the figures to log.

    Args:
        scores: (2n,) raw scores, the n chosen answers' first.
        safety_logits: (2n,) of the safety head, or None without it.
        margin: (n,).
        safe: (2, n) labels of chosen and rejected answers: 1 safe, 0 unsafe, NaN unlabelled.
        safety_loss_weight: of the auxiliary loss.
        centering_weight: of the centring penalty.
    """
    chosen, rejected = scores.chunk(2)
    total = ranking = ranking_loss(chosen, rejected, margin).sum()
    difference = (chosen - rejected).detach()
    figures = {
        "ranking_loss": ranking.detach(),
        "accuracy": (0.5 + 0.5 * difference.sign()).sum(),
        "score_difference": difference.sum(),
    }
    if centering_weight:
        penalty = centering_penalty(chosen, rejected).sum()
        total = total + centering_weight * penalty
        figures["centering_penalty"] = penalty.detach()
    if safety_logits is not None:
        known = ~safe.isnan()
        losses = safety_loss(safety_logits, safe.flatten(), known.flatten()).view_as(safe)
        auxiliary = (losses.sum(0) / known.sum(0).clamp(min=1)).sum()
        total = total + safety_loss_weight * auxiliary
        figures["safety_loss"] = auxiliary.detach()
    return total, figures
