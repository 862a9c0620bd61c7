"""The sampler of a policy: its weights in this process, or a server that answers as it. Light: torch comes late."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from rlhf.conversation import Renderer
from rlhf.models.checkpoint.context import TooLong
from rlhf.sampling.early_rejection import EarlyRejection, EarlyRejectionConfig, ScoreParts
from rlhf.sampling.protocol import Sampler
from rlhf.sampling.server import ServerConfig, ServerSampler

if TYPE_CHECKING:
    import torch


def policy_sampler(
    policy: str | os.PathLike[str],
    device: torch.device,
    *,
    quantization: Literal["nf4"] | None = None,
    batch_size: int | None = None,
    early_rejection: EarlyRejectionConfig | None = None,
    score_parts: ScoreParts | None = None,
    compile: bool = False,
    server: ServerConfig | None = None,
    too_long: TooLong = "cut",
) -> Sampler:
    """A sampler over a checkpoint folder.

    Args:
        policy: the folder; where a server answers, only its tokenizer is loaded.
        device: of the weights.
        quantization: nf4 holds them in 4 bit.
        batch_size: answers at once; None: as many as memory holds, and no more than pay.
        early_rejection: gives up a prompt's worst answers while they are written, by `score_parts`; None: writes all.
        compile: decode in compiled steps of a fixed shape (`rlhf.sampling.compiled`).
        server: answers in the weights' place, whole answers only.
        too_long: what becomes of a prompt that leaves too little room in the model's context.

    Raises:
        ValueError: early rejection without `score_parts`.
    """
    if early_rejection is not None and score_parts is None:
        raise ValueError("score_parts: early rejection needs something that scores parts of answers")
    from rlhf.models.policy import load_policy, load_tokenizer

    renderer = Renderer(load_tokenizer(policy))
    if server is not None:
        return ServerSampler(server, renderer)

    from rlhf.sampling.in_process import InProcessSampler

    model = load_policy(policy, quantization=quantization)
    model = model if model.device == device else model.to(device)
    rejection = EarlyRejection(early_rejection, score_parts) if early_rejection and score_parts else None
    return InProcessSampler(model, renderer, batch_size, rejection, compile, too_long)
