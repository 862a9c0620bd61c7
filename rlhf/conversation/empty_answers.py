"""The one rule for an empty answer: a model may end at once, and then there is nothing to judge (decision 32). Light.

| where | what becomes of it | who does it |
|---|---|---|
| scored | the lowest scores of the others in its call; flags of a score are off | `rlhf.rewards.distributed` |
| compared | the same text twice is a tie, an empty answer loses, and no judge is asked | `decided` |
| labelled | the pair is skipped: there is nothing to learn from it | `decided` |
| checked | it obeys nothing | `rlhf.evaluation.instructions.checkers.load_checker` |
| trained on | it is left out, as one without an end is (decision 26) | `says_nothing` |

Not bound by it: gold scorers, which know the truth of an empty answer too, and the judges of published benchmarks,
which are asked as their authors ask them.
"""

from __future__ import annotations


def says_nothing(answer: str) -> bool:
    """Whether an answer is empty: nothing in it but white space."""
    return not answer.strip()


def decided(a: str, b: str) -> float | None:
    """What there is to say of two answers to one prompt without a judge; white space around them does not count.

    Returns:
        0.5 where they are the same, 1 where b alone is empty, 0 where a alone is; None: a judge has to compare them.
    """
    if a.strip() == b.strip():
        return 0.5
    if says_nothing(a) or says_nothing(b):
        return float(says_nothing(b))
    return None
