"""How close answers are to reference answers, and how hard they are to read (QLoRA report, sections 4.1 and 4.2).

ROUGE (Lin 2004) is rouge-score's, BERTScore (Zhang et al. 2019, arXiv 1904.09675) bert-score's, each as the library
gives it. A mean hides much: every figure comes with quantiles, and what it was taken from is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf.data.corpus.readability import count, grade, reading_ease
from rlhf.errors import InputError
from rlhf.intervals import mean_interval
from rlhf.models.checkpoint.context import Context

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BERT_SCORES = ("bert_precision", "bert_recall", "bert_f1")
QUANTILES = (5, 25, 50, 75, 95)


def require_encoder(model: str, num_layers: int) -> None:
    """InputError where BERTScore's encoder cannot be found, or has fewer layers. Reads its config only."""
    from transformers import AutoConfig

    from rlhf.models.checkpoint.pretrained import from_pretrained

    try:
        layers = from_pretrained(AutoConfig, model, "bert_model").num_hidden_layers
    except AttributeError:
        raise InputError(f"bert_model: {model} is no encoder with layers; name another") from None
    if not 0 <= num_layers <= layers:
        raise InputError(f"bert_layers: must lie in 0 to {layers}, the layers of {model}, got {num_layers}")


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F1 of ROUGE-1, -2, -L and -Lsum of each answer against its reference, 0 to 1, words stemmed.

    Lsum takes lines for sentences, as rouge-score does.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGES, use_stemmer=True)
    scored = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: [one[name].fmeasure for one in scored] for name in ROUGES}


def bert_scores(
    answers: Sequence[str],
    references: Sequence[str],
    model: str,
    num_layers: int,
    *,
    rows: int = 32,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Precision, recall and F1 of each answer's BERTScore against its reference, without idf, not rescaled.

    Args:
        model: encoder, a folder or a hub name; also a causal model, whose states know only what stands before a word.
            Longer texts than its tokenizer takes, or else its positions, are cut.
        num_layers: the layer whose states are compared; bert-score has a table of the best one for known models.

    Raises:
        InputError: neither tokenizer nor model says how long a text may be, which bert-score needs.
    """
    from bert_score import BERTScorer

    scorer = BERTScorer(model_type=model, num_layers=num_layers, batch_size=rows, device=device)
    tokenizer: Any = scorer._tokenizer
    longest = Context.of_tokenizer(tokenizer).limit(Context.of(scorer._model.config).length)
    if longest is None:
        raise InputError(f"bert_model: the tokenizer of {model} has no model_max_length; set it in its config")
    tokenizer.model_max_length = longest
    scorer._model.float()
    known = [i for i, pair in enumerate(zip(answers, references, strict=True)) if all(text.strip() for text in pair)]
    scores = scorer.score([answers[i] for i in known], [references[i] for i in known]) if known else [()] * 3
    found = {name: [0.0] * len(answers) for name in BERT_SCORES}
    for name, part in zip(BERT_SCORES, scores, strict=True):
        for i, score in zip(known, part, strict=True):
            found[name][i] = float(score)
    return found


def readability(texts: Iterable[str]) -> dict[str, list[float]]:
    """words, reading_ease and grade of each text; NaN where a text has no word. See `rlhf.data.corpus.readability`."""
    counts = [count(text) for text in texts]
    return {
        "words": [float(one.words) for one in counts],
        "reading_ease": [reading_ease(one) for one in counts],
        "grade": [grade(one) for one in counts],
    }


def distribution(values: Sequence[float | None]) -> dict[str, Any]:
    """n, mean with its 95 % interval (Student's t) and quantiles by per cent, of the values but for NaN and None."""
    import numpy as np

    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return {"n": 0, "mean": None, "ci": None, "quantiles": None}
    interval = mean_interval(known)
    assert interval is not None
    quantiles = dict(zip(map(str, QUANTILES), np.percentile(known, QUANTILES).tolist(), strict=True))
    return {"n": len(known), "mean": interval.mean, "ci": interval.ci, "quantiles": quantiles}


def distributions(figures: Mapping[str, Sequence[float | None]]) -> dict[str, dict[str, Any]]:
    """`distribution` of each figure."""
    return {name: distribution(values) for name, values in figures.items()}
