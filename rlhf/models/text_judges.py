"""Text classifiers (toxicity, sentiment, truth) and embedding models, by local folder or hub name.

Any sequence classifier and any encoder that plain transformers loads; a sentence-transformers folder too, without that
package: its pooling is read from its files. Weights are read from safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.hub import cached_file

from rlhf.errors import InputError, notice
from rlhf.models.batching import batch_tokens_on, batches_by_length
from rlhf.models.checkpoint.context import Context
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.checkpoint.saving import quiet_transformers

if TYPE_CHECKING:
    from rlhf.data.corpus.leakage import Floats

DEFAULT_MAX_TOKENS = 512
"""Of a model that does not say how long a text may be."""
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_MODULES = ("Transformer", "Pooling", "Normalize")


class Encoder:
    """A model and its tokenizer, run over texts in padded batches of similar length; `max_tokens` is the longest text.

    Args:
        field: the option that names it, for errors.
        name: local folder or hub name.
        kind: the auto class of the model.
        device: None is a GPU where there is one.
        batch_tokens: rows x padded length of one forward pass; None: by the device (`rlhf.models.batching`).
        max_tokens: a limit beside the model's own.
        folder: of the model, below `name`.
    """

    def __init__(
        self,
        field: str,
        name: str,
        kind: Any,
        device: object = None,
        batch_tokens: int | None = None,
        max_tokens: int | None = None,
        folder: str = "",
    ) -> None:
        with quiet_transformers():
            self.tokenizer = from_pretrained(AutoTokenizer, name, field, subfolder=folder)
            self.model = from_pretrained(kind, name, field, subfolder=folder).eval()
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise InputError(f"{field}: the tokenizer of {name} has neither pad nor end token; name another model")
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masked by position, whatever it is
        config = self.model.config
        told = Context.of_tokenizer(self.tokenizer).length
        self.max_tokens = Context.of(config).limit(told, max_tokens or None) or DEFAULT_MAX_TOKENS
        self._who, self._said = f"{field}: {name}", False
        config.pad_token_id = self.tokenizer.pad_token_id  # by which a decoder's classifier finds a text's last token
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._batch_tokens = batch_tokens

    @property
    def batch_tokens(self) -> int:
        """Of one forward pass."""
        return self._batch_tokens or batch_tokens_on(self.model.device)

    @torch.inference_mode()
    def run(
        self, texts: Sequence[str], read: Callable[[Any, Tensor], Tensor], pairs: Sequence[str] | None = None
    ) -> Tensor:
        """`read(outputs, attention_mask)` of every text (and its second one), float32 on the CPU, in their order.

        A special token that a text spells out is text. The first time that one is too long, stderr says that it is cut.
        """
        seconds: Sequence[str | None] = pairs or [None] * len(texts)
        rows = [
            self.tokenizer(text, second, truncation=True, max_length=self.max_tokens, split_special_tokens=True)
            for text, second in zip(texts, seconds, strict=True)
        ]
        if any(was_cut(row) for row in rows):
            self.say_cut()
        found: dict[int, Tensor] = {}
        for some in batches_by_length([len(row["input_ids"]) for row in rows], self.batch_tokens):
            batch = self.tokenizer.pad([rows[i] for i in some], return_tensors="pt").to(self.model.device)
            values = read(self.model(**batch), batch["attention_mask"]).float().cpu()
            found.update(zip(some, values, strict=True))
        return torch.stack([found[i] for i in range(len(rows))]) if rows else torch.empty(0)

    def say_cut(self) -> None:
        """That texts are cut, the first time."""
        if not self._said:
            self._said = True
            notice(f"{self._who} reads {self.max_tokens} tokens: longer texts are cut")


def was_cut(row: Any) -> bool:
    """Whether a tokenizer that truncates has cut a text, as its fast kinds say."""
    return bool(row.encodings and row.encodings[0].overflowing)


class TextClassifier:
    """Probabilities of a sequence classifier's labels, by the model's own `problem_type`.

    As transformers' text-classification pipeline takes them: labels of a multi-label model are independent of each
    other (a sigmoid each), as is the only label of a model that says nothing; else they exclude each other (softmax).

    Args:
        spec: folder or hub name; weights as safetensors, no code of the checkpoint's own is run.
        field: the option that names it, for errors.
        device: None is a GPU where there is one.
        batch_tokens: rows x padded length of one forward pass; None: by the device (`rlhf.models.batching`).

    Raises:
        InputError: it cannot be loaded; it is a regression, whose output is no probability.
    """

    def __init__(
        self, spec: str, field: str = "classifier", device: object = None, batch_tokens: int | None = None
    ) -> None:
        self._encoder = Encoder(field, spec, AutoModelForSequenceClassification, device, batch_tokens)
        self.tokenizer, self.model = self._encoder.tokenizer, self._encoder.model
        config = self.model.config
        if config.problem_type == "regression":
            raise InputError(
                f"{field}: {spec} is a regression (problem_type in its config.json), which says no probability of a "
                "label; name a classifier"
            )
        self.spec, self.field = spec, field
        self.labels = [str(config.id2label[i]) for i in range(config.num_labels)]
        self.independent = len(self.labels) == 1 or config.problem_type == "multi_label_classification"

    def all_probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """(n, labels) float32, CPU; texts that are too long for the model are cut.

        Args:
            texts: n of them.
            pairs: n second texts, for a classifier of pairs (question, answer).
        """

        def read(outputs: Any, mask: Tensor) -> Tensor:
            logits: Tensor = outputs.logits.float()
            return logits.sigmoid() if self.independent else logits.softmax(-1)

        return self._encoder.run(texts, read, pairs).reshape(len(texts), len(self.labels))

    def labels_of(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        return [self.labels[i] for i in self.all_probabilities(texts).argmax(1).tolist()]

    def probabilities(self, texts: Sequence[str], *labels: str, pairs: Sequence[str] | None = None) -> Tensor:
        """(n,) float32, CPU: that a text has one of `labels`: the sum, or the highest where labels are independent.

        Raises:
            InputError: no such label.
        """
        unknown = [label for label in labels if label not in self.labels]
        if unknown or not labels:
            raise InputError(
                f"{self.field}: {self.spec} has no label {unknown[0] if unknown else 'of no name'!r}, but "
                f"{', '.join(self.labels)}"
            )
        found = self.all_probabilities(texts, pairs)[:, [self.labels.index(label) for label in labels]]
        return found.amax(1) if self.independent else found.sum(1)


class ToxicityClassifier:
    """Toxicity of texts, 0 to 1: the probability of the toxic labels of a `TextClassifier`.

    Args:
        name: local folder or hub name.
        labels: those that mean toxic; empty: every label with "toxic" in its name that does not begin with "non",
            "not", "un" or "de", or the only one (decision 9).

    Raises:
        InputError: it cannot be loaded, a label that it does not have, or none that is known as toxic.
    """

    def __init__(
        self, name: str, labels: Sequence[str] = (), device: object = None, batch_tokens: int | None = None
    ) -> None:
        self.classifier = TextClassifier(name, "toxicity_model", device, batch_tokens)
        known = self.classifier.labels
        wanted = list(labels) or [
            label
            for label in known
            if "toxic" in label.lower() and not label.lower().startswith(("non", "not", "un", "de"))
        ]
        self.labels = wanted or (known if len(known) == 1 else [])
        if not self.labels or not set(self.labels) <= set(known):
            raise InputError(
                f"toxicity_labels: {name} has the labels {', '.join(known)}; name those that mean toxic, "
                f"got {', '.join(labels) or 'none'}"
            )

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The toxicity of each text; one that is too long is cut."""
        found: list[float] = self.classifier.probabilities(texts, *self.labels).tolist()
        return found


class Embedder:
    """Embeddings of texts: the mean of the last layer's states over a text's tokens (or the first one's, where a
    sentence-transformers folder says so), not normalised.

    Args:
        name: local folder or hub name of a transformers encoder or a sentence-transformers model.

    Raises:
        InputError: it cannot be loaded, or has a sentence-transformers module that is not known here.
    """

    def __init__(self, name: str, device: object = None, batch_tokens: int | None = None) -> None:
        self._pooling, max_tokens, folder = _sentence_transformer(name)
        self._encoder = Encoder("embedding_model", name, AutoModel, device, batch_tokens, max_tokens, folder)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """(n, d) float32; a text that is too long is cut."""

        def read(outputs: Any, mask: Tensor) -> Tensor:
            states: Tensor = outputs.last_hidden_state.float()
            if self._pooling == "cls":
                return states[:, 0]
            weight = mask[:, :, None].to(states.dtype)
            return (states * weight).sum(dim=1) / weight.sum(dim=1)

        return self._encoder.run(texts, read).numpy()


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
            found = cached_file(name, file)
        except OSError:  # no such file, or no such model: loading it will say so
            return None
        if found is None:
            return None
        path = Path(found)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
