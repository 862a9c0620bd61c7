"""A text classifier of Hugging Face (toxicity, sentiment, truth) as a judge of generated texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.errors import InputError
from rlhf.models.batching import batches_by_length
from rlhf.models.context import Context
from rlhf.models.saving import quiet_transformers
from rlhf.pretrained import from_pretrained


class TextClassifier:
    """Probabilities of a sequence classifier's labels.

    Args:
        spec: folder or hub name; weights as safetensors, no code of the checkpoint's own is run.
        device: None is the CPU.
        batch_tokens: rows x padded length of one forward pass.

    Raises:
        InputError: it cannot be loaded, or its tokenizer has no pad token.
    """

    def __init__(self, spec: str, device: object = None, batch_tokens: int = 4096) -> None:
        with quiet_transformers():
            self.tokenizer = from_pretrained(AutoTokenizer, spec, "classifier")
            self.model = from_pretrained(AutoModelForSequenceClassification, spec, "classifier").eval()
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"classifier: the tokenizer of {spec} has no pad token; save it with one")
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to(device or "cpu")
        self.spec, self.batch_tokens = spec, batch_tokens
        self.labels = [str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels)]

    def labels_of(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        return [self.labels[i] for i in self._of_all_labels(texts, None).argmax(1).tolist()]

    def probabilities(self, texts: Sequence[str], label: str, pairs: Sequence[str] | None = None) -> Tensor:
        """(n,) float32, CPU: the probability of `label` (softmax over the labels; with one label the sigmoid).

        Args:
            texts: n of them; longer ones are cut to the classifier's length.
            label: one of `labels`.
            pairs: n second texts, for a classifier of pairs (question, answer).

        Raises:
            InputError: no such label.
        """
        if label not in self.labels:
            raise InputError(f"classifier: {self.spec} has no label {label!r}, but {', '.join(self.labels)}")
        return self._of_all_labels(texts, pairs)[:, self.labels.index(label)]

    @torch.inference_mode()
    def _of_all_labels(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Tensor:
        """(n, labels) float32, CPU."""
        limit = min(self.tokenizer.model_max_length, Context.of(self.model.config).length or 512)
        encoded = [
            self.tokenizer(text, pair, truncation=True, max_length=limit)
            for text, pair in zip(texts, pairs or [None] * len(texts), strict=True)
        ]
        found = torch.zeros(len(texts), len(self.labels))
        for batch in batches_by_length([len(row["input_ids"]) for row in encoded], self.batch_tokens):
            rows = self.tokenizer.pad([encoded[i] for i in batch], return_tensors="pt").to(self.model.device)
            logits = self.model(**rows).logits.float().cpu()
            found[batch] = logits.sigmoid() if len(self.labels) == 1 else logits.softmax(-1)
        return found
