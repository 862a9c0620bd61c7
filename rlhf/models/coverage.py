"""What of a model an adapter, or 4 bit, reaches: some architectures keep their weights where neither looks.

peft's "every linear layer" and bitsandbytes look for linear layers. A model may have its own kind of them (Falcon), or
experts fused into one tensor (Mixtral, Qwen3-MoE, DeepSeek-V3), which 4 bit passes over without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.errors import InputError, notice
from rlhf.models.checkpoint.folder import ADAPTER_PREFIX
from rlhf.terminal import note

if TYPE_CHECKING:
    from torch import Tensor, nn

OTHER_SENSES = re.compile(
    r"(?:^|\.)(?:vision_tower|visual|vision_model|embed_vision|multi_modal_projector|audio_tower|embed_audio)(?:\.|$)"
)
"""Parts of a model by name that see or hear, and are not used here: texts are all that it is given."""

READ_BY_WEIGHT = r".*\.(?:mixer|mamba)\.(?:x_proj|dt_proj|out_proj)"
"""Linear layers of state-space mixers by name, whose weights (fused) kernels read without calling the layer: what an
adapter adds to its output, or 4 bit holds in its place, would be passed over."""


@dataclass(frozen=True)
class Coverage:
    """What of a model's weights an adapter or 4 bit reaches; matrices alone count, embeddings, heads and other senses
    do not.

    Args:
        reached: weights reached.
        total: all of them.
        left_out: name of the largest one that is not reached; "" where all are.
    """

    reached: int
    total: int
    left_out: str

    @property
    def share(self) -> float:
        return self.reached / max(self.total, 1)


def adapter_coverage(model: nn.Module) -> Coverage:
    """The weights that have a LoRA update beside them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {
        (id(layer.get_base_layer()), getattr(layer, "parameter_name", "weight"))
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
    }
    return _coverage(model, lambda module, key, weight: (id(module), key) in adapted)


def quantization_coverage(model: nn.Module) -> Coverage:
    """The weights that are held in 4 bit."""
    return _coverage(model, lambda module, key, weight: hasattr(weight, "quant_state"))


def _coverage(model: nn.Module, reaches: Callable[[nn.Module, str, Tensor], bool]) -> Coverage:
    from torch.nn import Embedding

    reached = total = largest = 0
    left_out = ""
    outputs = getattr(model, "get_output_embeddings", None)
    head = None if outputs is None else outputs()
    for name, module in model.named_modules():
        plain = name.replace("base_layer", "").rstrip(".").rpartition(".")[2]
        if module is head or isinstance(module, Embedding) or ".lora_" in name or plain in ("score", "lm_head"):
            continue
        if OTHER_SENSES.search(name):
            continue
        for key, weight in module._parameters.items():
            if weight is None or weight.ndim < 2:
                continue
            four_bit = hasattr(weight, "quant_state")
            size = module.in_features * module.out_features if four_bit else weight.numel()
            total += size
            if reaches(module, key, weight):
                reached += size
            elif size > largest:
                largest, left_out = size, f"{name}.{key}".replace(".base_layer", "")
    return Coverage(reached, total, left_out.removeprefix(ADAPTER_PREFIX))


def say_coverage(field: str, what: str, coverage: Coverage) -> None:
    """Say on stderr what is covered; InputError, before anything is trained, where it is less than half."""
    if not coverage.total:  # the plan's models have no weights
        return
    figures = f"{coverage.reached:,} of {coverage.total:,} weights, {coverage.share:.0%}"
    if coverage.share < 0.5:
        raise InputError(
            f"{field}: {what} reaches {figures} (embeddings and heads apart): {coverage.left_out or 'all'} is no "
            f"linear layer that it knows; leave {field} out, or name a model whose layers it reaches"
        )
    said = f"{field}: {what} reaches {figures} (embeddings and heads apart)"
    if coverage.left_out:
        notice(f"{said}; the largest it leaves out is {coverage.left_out}")
    else:
        note(said)
