"""What looks wrong about how a stage's reward functions scored. Light: no torch."""

from __future__ import annotations

from rlhf.data.suspicion import suspicious_cuts


def suspicious_scoring(**functions: object) -> list[str]:
    """A sentence for each reward function, by its option's name, that had to cut most of what it scored so far.

    What this process scored counts. Only functions that read by a tokenizer's context know (`scored`, `cut`).
    """
    counts = {name: (getattr(f, "cut", 0), getattr(f, "scored", 0)) for name, f in functions.items()}
    return suspicious_cuts({name: cut / scored for name, (cut, scored) in counts.items() if scored})
