"""A toxicity classifier and an embedding model, by local folder or hub name, as functions of texts.

Any sequence classifier and any encoder that plain transformers loads; a sentence-transformers folder too, without that
package: its pooling is read from its files. Weights are read from safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.hub import cached_file

from rlhf.errors import InputError

if TYPE_CHECKING:
    from rlhf.data.corpus.leakage import Floats

DEFAULT_MAX_TOKENS = 512
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_MODULES = ("Transformer", "Pooling", "Normalize")


class _Encoder:
    """A model and its tokenizer, run over texts in padded batches of similar length."""

    def __init__(
        self, field: str, name: str, kind: Any, batch_size: int, max_tokens: int | None = None, folder: str = ""
    ) -> None:
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, subfolder=folder)
            self.model = kind.from_pretrained(name, subfolder=folder, use_safetensors=True).eval()
        except Exception as error:  # the hub client and transformers raise many kinds
            raise InputError(f"{field}: {name} cannot be loaded ({' '.join(str(error).split())[:300]})") from error
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise InputError(f"{field}: the tokenizer of {name} has neither pad nor end token; name another model")
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masked by position, whatever it is
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        limits = (max_tokens, self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 0))
        # RoBERTa's positions begin behind its pad token's id
        reserved = (self.model.config.pad_token_id or 0) + 1 if self.model.config.model_type.endswith("roberta") else 0
        self.max_tokens = min(limit for limit in (*limits, DEFAULT_MAX_TOKENS) if limit) - reserved
        self.batch_size = batch_size

    @torch.inference_mode()
    def run(self, texts: Sequence[str], read: Callable[[Any, Tensor], Tensor]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """`read(outputs, attention_mask)` of every text, float32, in the texts' order."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        found: dict[int, Any] = {}
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            batch = self.tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.model.device)
            values = read(self.model(**batch), batch["attention_mask"]).float().cpu().numpy()
            found.update(zip(some, values, strict=True))
        return np.stack([found[i] for i in range(len(texts))]) if len(texts) else np.empty(0, np.float32)


class ToxicityClassifier:
    """Toxicity of texts, 0 to 1: the probability of the toxic labels of a sequence classifier.

    Probabilities are as transformers' text-classification pipeline takes them: a sigmoid of each label where there is
    one or the model is multi-label (the highest counts), else a softmax (the sum counts).

    Args:
        name: local folder or hub name.
        labels: those that mean toxic; empty: every label with "toxic" in its name that does not begin with "non",
            "not", "un" or "de", or the only one.
        batch_size: texts at once.

    Raises:
        InputError: it cannot be loaded, a label that it does not have, or none that is known as toxic.
    """

    def __init__(self, name: str, labels: Sequence[str] = (), batch_size: int = 32) -> None:
        self._encoder = _Encoder("toxicity_model", name, AutoModelForSequenceClassification, batch_size)
        config = self._encoder.model.config
        known = [config.id2label[i] for i in range(config.num_labels)]
        wanted = list(labels) or [
            label
            for label in known
            if "toxic" in label.lower() and not label.lower().startswith(("non", "not", "un", "de"))
        ]
        wanted = wanted or (known if len(known) == 1 else [])
        if not wanted or not set(wanted) <= set(known):
            raise InputError(
                f"toxicity_labels: {name} has the labels {', '.join(known)}; name those that mean toxic, "
                f"got {', '.join(labels) or 'none'}"
            )
        self._places = [known.index(label) for label in wanted]
        self._independent = len(known) == 1 or config.problem_type == "multi_label_classification"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The toxicity of each text; one that is too long is cut."""

        def read(outputs: Any, mask: Tensor) -> Tensor:
            logits: Tensor = outputs.logits.float()
            if self._independent:
                return logits.sigmoid()[:, self._places].amax(dim=1)
            return logits.softmax(dim=1)[:, self._places].sum(dim=1)

        return [float(value) for value in self._encoder.run(texts, read)]


class Embedder:
    """Embeddings of texts: the mean of the last layer's states over a text's tokens (or the first one's, where a
    sentence-transformers folder says so), not normalised.

    Args:
        name: local folder or hub name of a transformers encoder or a sentence-transformers model.
        batch_size: texts at once.

    Raises:
        InputError: it cannot be loaded, or has a sentence-transformers module that is not known here.
    """

    def __init__(self, name: str, batch_size: int = 32) -> None:
        self._pooling, max_tokens, folder = _sentence_transformer(name)
        self._encoder = _Encoder("embedding_model", name, AutoModel, batch_size, max_tokens, folder)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """(n, d) float32; a text that is too long is cut."""

        def read(outputs: Any, mask: Tensor) -> Tensor:
            states: Tensor = outputs.last_hidden_state.float()
            if self._pooling == "cls":
                return states[:, 0]
            weight = mask[:, :, None].to(states.dtype)
            return (states * weight).sum(dim=1) / weight.sum(dim=1)

        return self._encoder.run(texts, read)


def _sentence_transformer(name: str) -> tuple[str, int | None, str]:
    """(pooling, most tokens, the encoder's folder) of a sentence-transformers model; of any other one the mean."""
    modules = _read(name, "modules.json")
    if modules is None:
        return "mean", None, ""
    folders = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    pooling = _read(name, f"{folders.get('Pooling')}/config.json") or {}
    modes = [mode for key, mode in _POOLINGS.items() if pooling.get(key) is True or pooling.get("pooling_mode") == mode]
    others = [
        key for key, on in pooling.items() if on is True and key.startswith("pooling_mode") and key not in _POOLINGS
    ]
    if not set(folders) <= set(_MODULES) or len(modes) != 1 or others:
        raise InputError(
            f"embedding_model: {name} is made of {', '.join(folders)} and pools by {', '.join(modes + others)}; only "
            "Transformer, Pooling (mean or cls) and Normalize are known here"
        )
    folder = folders.get("Transformer", "")
    settings = _read(name, f"{folder}/sentence_bert_config.json".lstrip("/")) or {}
    return modes[0], settings.get("max_seq_length"), folder


def _read(name: str, file: str) -> Any:
    """The content of a JSON file of a local folder or of the hub; None where there is none."""
    path = Path(name) / file
    if not Path(name).is_dir():
        try:
            path = Path(cached_file(name, file))
        except OSError:  # no such file, or no such model: loading it will say so
            return None
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
