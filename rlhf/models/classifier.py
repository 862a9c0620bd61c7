"""A sequence classifier over every causal backbone, also where transformers has none (Granite, Cohere, Mamba, LFM2 …).

What is missing is made here, one class a family, and made known to `AutoModelForSequenceClassification` in this
process. It is built as transformers builds its own: the backbone under its family's name, and a layer `score` on the
last token's state. Elsewhere such a folder is read as `AutoModel`, with `score.weight` beside it in the same file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


def classifier_for(config: Any) -> type[AutoModelForSequenceClassification]:
    """`AutoModelForSequenceClassification`, which after this call knows a class for models with this config."""
    kind = type(config)
    known: Any = AutoModelForSequenceClassification._model_mapping
    backbones: Any = AutoModel._model_mapping
    if kind not in known and kind in backbones:
        AutoModelForSequenceClassification.register(kind, _made_over(kind, backbones[kind]), exist_ok=True)
    return AutoModelForSequenceClassification


def _made_over(config: type, backbone: type[PreTrainedModel]) -> type[PreTrainedModel]:
    family = next(kind for kind in backbone.__mro__[1:] if issubclass(kind, PreTrainedModel))
    name = f"{backbone.__name__.removesuffix('Model')}ForSequenceClassification"
    # of the family's module: transformers makes no buffer anew (Falcon-H1's multipliers) in a class of somebody's own
    names = {"config_class": config, "base_model_prefix": backbone.base_model_prefix, "__module__": family.__module__}
    return type(name, (_Classifier, family), names)


class _Classifier:
    """What a family's `PreTrainedModel` becomes a classifier by: `transformers`' generic one asks the backbone for more
    than every backbone knows."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))  # type: ignore[attr-defined]
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """logits (B, labels) of right-padded rows; without a mask, of the last token that is not the pad token."""
        backbone: Any = self.base_model  # type: ignore[attr-defined]
        states = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        pad = self.config.get_text_config().pad_token_id  # type: ignore[attr-defined]
        real = input_ids != (-1 if pad is None else pad) if attention_mask is None else attention_mask != 0
        last = (torch.arange(input_ids.shape[1], device=input_ids.device) * real).argmax(-1)
        return SequenceClassifierOutput(logits=self.score(states[torch.arange(len(last), device=last.device), last]))
