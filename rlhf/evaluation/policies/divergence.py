"""How far a policy has moved from SFT: KL(policy || SFT) from the policy's own answers. Light: torch when called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import InputError
from rlhf.rewards.distributed import deal_out

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = Sequence[tuple[Sequence[int], Sequence[int]]]
"""(prompt ids, answer ids) of each answer."""


def answer_logprobs(
    model: PreTrainedModel, rows: Rows, pad_id: int, accelerator: Accelerator, temperature: float = 1.0
) -> list[Tensor]:
    """Log-probabilities of each answer's tokens at the temperature (above 0) that they were drawn at, (T_i,) float32.

    Called by all processes with the same rows.
    """
    from rlhf.models.logprobs import score_rows

    return deal_out(rows, lambda part: score_rows(model, part, pad_id, temperature=temperature), accelerator)


def answer_kls(policy: Sequence[Tensor], baseline: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Each answer's (k1, k3), summed over its tokens, in nats.

    Both are unbiased for the KL of whole answers up to the length limit, between both models at one temperature, where
    the answers were drawn from `policy` at it: no top-p, no top-k. k1 may be negative; k3 is not, and agrees with it up
    to noise.
    """
    from rlhf.objectives.policy import kl_k1, kl_k3

    return [
        (kl_k1(own, other).double().sum().item(), kl_k3(own, other).double().sum().item())
        for own, other in zip(policy, baseline, strict=True)
    ]


def require_same_tokenizer(tokenizer: PreTrainedTokenizerBase, baseline: Path) -> None:
    """Raise InputError where the baseline's tokenizer numbers tokens otherwise: the KL is of token distributions."""
    from rlhf.models.policy import load_tokenizer

    if load_tokenizer(baseline).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"baseline: the tokenizer of {baseline} is not the policy's, so there is no KL between them; "
            "name the policy's own SFT checkpoint, or leave baseline out"
        )
