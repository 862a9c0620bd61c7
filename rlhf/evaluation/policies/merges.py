"""What a merge changed: the loss on held-out answers, and the KL from the model that was trained.

Light: torch is loaded when called.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.conversation import Conversation, Rendered
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.models.checkpoint.folder import base_quantization
from rlhf.models.merging import merged_policy
from rlhf.models.policy import load_policy, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class HeldoutFigures:
    """On the trained tokens of held-out rows, means in nats per token.

    Args:
        loss: negative log-likelihood.
        kl: KL(trained || this model) of the next-token distributions, over the whole vocabulary.
    """

    loss: float
    kl: float


def heldout_figures(
    model: nn.Module | _WithoutAdapter,
    trained: nn.Module,
    rows: Sequence[Rendered],
    pad_id: int,
    batch_tokens: int | None = None,
) -> HeldoutFigures:
    """Measure a model beside the one that was trained; both are in eval mode.

    Args:
        model, trained: causal LMs of transformers with one tokenizer.
        rows: with at least one trained token in all.
        pad_id: any valid id.
        batch_tokens: rows x padded length of one forward pass; None: by the device (`rlhf.models.batching`).
    """
    from rlhf.finetuning.supervised import answer_task
    from rlhf.models.batching import batch_tokens_on, batches_by_length

    loss = kl = 0.0
    count = 0
    most = batch_tokens or batch_tokens_on(next(model.parameters()).device, logits=True)
    for batch in batches_by_length([len(row.input_ids) for row in rows], most):
        inputs = answer_task(pad_id).collate([rows[i] for i in batch])
        own, other = _logprobs(model, inputs), _logprobs(trained, inputs)
        targets = inputs["targets"].to(own.device)
        loss -= own.gather(-1, targets[:, None]).double().sum().item()
        other = other.to(own.device)
        kl += (other.exp() * (other - own)).double().sum().item()
        count += len(targets)
    return HeldoutFigures(loss / count, kl / count)


def merge_report(
    checkpoint: str | os.PathLike[str], dialogues: Sequence[Conversation], settings: FinetuningConfig, dtype: str
) -> dict[str, Any]:
    """Model -> {loss, kl} on held-out answers; and which merge is "closest", the one of the least kl.

    The models: "trained", as `load_policy` reads the checkpoint; "base", the same without the adapter; "careful" (over
    4-bit weights) and "simple", merged in `dtype` and then computing in float32, as `load_policy` reads what is saved.

    Args:
        checkpoint: of a policy's adapter.
        dialogues: that end with an answer; those that cannot be rendered count as settings.on_bad_row says.
    """
    from rlhf.finetuning.supervised import render_rows, training_renderer

    trained, tokenizer = load_policy(checkpoint), load_tokenizer(checkpoint)
    renderer = training_renderer(tokenizer, trained, settings)
    rows = render_rows(renderer, dialogues, settings, "held-out data")
    if not rows:
        raise InputError("data: no dialogue is left to measure on; raise max_length")

    def measure(model: nn.Module | _WithoutAdapter) -> dict[str, float]:
        return asdict(heldout_figures(model, trained, rows, renderer.pad_token_id))

    merges: tuple[Literal["simple", "careful"], ...]
    merges = ("simple",) if base_quantization(Path(checkpoint)) is None else ("careful", "simple")
    report: dict[str, Any] = {"rows": len(rows), "tokens": sum(sum(row.loss_mask[1:]) for row in rows)}
    report["trained"] = measure(trained)
    report["base"] = measure(_WithoutAdapter(trained))
    for merge in merges:
        report[merge] = measure(merged_policy(checkpoint, merge, dtype).float().to(trained.device))
    report["closest"] = min(merges, key=lambda merge: report[merge]["kl"])
    return report


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """merge.json for a reader: the layers' norms in the middle, the models' figures, and what they say."""
    layers = report["layers"]
    shares = {
        name: [layer[name] / layer["weight"] for layer in layers if layer["weight"]]
        for name in ("quantization", "update")
    }
    lines = [f"{len(layers)} layers, median (largest) of the norms beside that of the weights:"]
    for name, what in (("quantization", "W - dq(W)"), ("update", "update")):
        lines.append(f"  {what:<10} {statistics.median(shares[name]):.4f} ({max(shares[name]):.4f})")
    if "heldout" not in report:
        return lines
    heldout = report["heldout"]
    lines.append(f"on {heldout['rows']} held-out dialogues, {heldout['tokens']} answer tokens, in nats per token:")
    lines.append(f"  {'model':<10} {'loss':>8} {'KL(trained || model)':>22}")
    for name in ("base", "trained", "careful", "simple"):
        if name in heldout:
            lines.append(f"  {name:<10} {heldout[name]['loss']:8.4f} {heldout[name]['kl']:22.6f}")
    lines.append(f"the {heldout['closest']} merge is closest to what was trained")
    return lines


class _WithoutAdapter:
    """A policy under an adapter, with the adapter off."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.parameters = policy.parameters

    def __call__(self, **inputs: Any) -> Any:
        with self.policy.disable_adapter():
            return self.policy(**inputs)


def _logprobs(model: nn.Module | _WithoutAdapter, inputs: dict[str, Tensor]) -> Tensor:
    """log p of every token at each trained position, (N, V) float32."""
    import torch

    inputs = {name: tensor.to(next(model.parameters()).device) for name, tensor in inputs.items()}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[inputs["rows"], inputs["positions"]].float().log_softmax(-1)
