"""How a classifier of somebody else's says which answer is better: the labels in its config.json. Light: no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlhf.errors import InputError, quoted
from rlhf.models.checkpoint.folder import is_adapter_checkpoint, json_object

GOOD = {"positive", "pos", "good", "chosen", "accepted", "preferred", "better", "helpful", "safe", "harmless", "yes"}
BAD = {"negative", "neg", "bad", "rejected", "worse", "unhelpful", "unsafe", "harmful", "toxic", "no"}
UNNAMED = ["LABEL_0", "LABEL_1"]


def writes_text(path: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a model that reads one text and writes another (T5, BART), and no classifier."""
    config = _config(path)
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    return bool(config.get("is_encoder_decoder")) and str(first).endswith("ForConditionalGeneration")


def good_and_bad(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Numbers of the label that means good and the one that means bad; None: there is one label alone.

    Of two without names the second is good, as in a classifier of 0 and 1.

    Raises:
        InputError: more than two, or two whose names do not say which is the better answer's.
    """
    if is_adapter_checkpoint(path):
        return None  # one of ours
    named = _config(path).get("id2label") or dict(enumerate(UNNAMED))  # transformers writes down no names of two
    try:
        labels = [str(named[number]) for number in sorted(named, key=int)]
    except (TypeError, ValueError, IndexError):
        raise InputError(
            f"reward model: the id2label of {path}/config.json is {quoted(named)}; it must name each label's number"
        ) from None
    if len(labels) == 1:
        return None
    if len(labels) > 2:
        raise InputError(
            f"reward model: {path} has {len(labels)} labels, a reward model has 1, or 2 of which one is the better "
            "answer's; name another, or write a reward function that reads it (docs/own_reward.md)"
        )
    if labels == UNNAMED:
        return 1, 0
    said = [label.lower() for label in labels]
    for good, bad in ((1, 0), (0, 1)):
        if (said[good] in GOOD or said[bad] in BAD) and said[good] not in BAD and said[bad] not in GOOD:
            return good, bad
    raise InputError(
        f"reward model: {path} has the labels {labels[0]} and {labels[1]}, which do not say which is the better "
        "answer's; name them bad and good in the id2label of its config.json"
    )


def _config(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = Path(path) / "config.json"
    return json_object(file) if file.is_file() else {}
