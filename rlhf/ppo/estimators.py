"""Estimators of the advantage by name, for `PPOConfig.estimator`: a line in `ESTIMATORS`, or one's own import path.

Their formulas are pure functions in `rlhf.objectives.advantages`; what is summed over processes is summed before an
estimator is asked. Light: torch comes late, for a config asks what an estimator needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlhf.errors import InputError
from rlhf.imports import named_object

if TYPE_CHECKING:
    from torch import Tensor


class Settings(Protocol):
    """What an estimator is told: the `PPOConfig`, of which GAE reads its discount and its lambda."""

    @property
    def gamma(self) -> float: ...
    @property
    def lam(self) -> float: ...


@dataclass(frozen=True)
class Answers:
    """All answers of an iteration, of every process: (prompts, k), k to each prompt.

    Args:
        scores: gated and whitened, less what an answer without end costs.
        costs: beta times the answer's KL from the reference (k1, summed over its tokens).
    """

    scores: Tensor
    costs: Tensor


@dataclass(frozen=True)
class Tokens:
    """The answer tokens of one micro-batch on this process: (n, T), 0 off the mask.

    Args:
        rewards: of each token: its share of the KL's cost, and on the last one the answer's score.
        mask: bool, True on answer tokens.
        answers: (n,) which answers they are, counted through `Answers` row by row.
        values: predicted before each token; None where no value is learnt.
    """

    rewards: Tensor
    mask: Tensor
    answers: Tensor
    values: Tensor | None


class Estimator(Protocol):
    """How much better each token was than what was to be expected.

    Attributes:
        needs_value: a value model is loaded and trained; `advantages` then gives returns too.
        min_samples: answers to each prompt that it compares, 1 for none.
    """

    needs_value: bool
    min_samples: int

    def advantages(self, tokens: Tokens, answers: Answers, config: Settings) -> tuple[Tensor, Tensor | None]:
        """(n, T) float32 advantages, 0 off the mask, and with a value model the returns that it learns; no gradient.

        With a value model the advantages are whitened over all tokens of the iteration afterwards; else they are used
        as they are.
        """
        ...


class GAE:
    """Generalised advantage estimation: against a value model, token by token."""

    needs_value, min_samples = True, 1

    def advantages(self, tokens: Tokens, answers: Answers, config: Settings) -> tuple[Tensor, Tensor | None]:
        from rlhf.objectives.advantages import gae

        assert tokens.values is not None
        return gae(tokens.rewards, tokens.values, tokens.mask, config.gamma, config.lam)


class RLOO:
    """Leave-one-out: against the prompt's other answers, one advantage for all tokens of an answer."""

    needs_value, min_samples = False, 2

    def advantages(self, tokens: Tokens, answers: Answers, config: Settings) -> tuple[Tensor, Tensor | None]:
        from rlhf.objectives.advantages import rloo

        return of_answers(rloo(answers.scores, answers.costs), tokens), None


class GRPO:
    """Group-relative: the score whitened over the prompt's answers, one advantage for all tokens of an answer."""

    needs_value, min_samples = False, 2

    def advantages(self, tokens: Tokens, answers: Answers, config: Settings) -> tuple[Tensor, Tensor | None]:
        from rlhf.objectives.advantages import grpo

        return of_answers(grpo(answers.scores, answers.costs), tokens), None


ESTIMATORS: Mapping[str, Estimator] = {"gae": GAE(), "rloo": RLOO(), "grpo": GRPO()}


def of_answers(advantages: Tensor, tokens: Tokens) -> Tensor:
    """One advantage an answer, (prompts, k), given to each of its tokens: (n, T)."""
    return advantages.flatten()[tokens.answers][:, None] * tokens.mask


def find_estimator(name: str) -> Estimator:
    """The estimator that a config names.

    Raises:
        InputError: it is neither known nor imported, or lacks what an `Estimator` has.
    """
    found = named_object("estimator", name, ESTIMATORS)
    kinds = {"needs_value": bool, "min_samples": int}
    lacking = [attribute for attribute, kind in kinds.items() if not isinstance(getattr(found, attribute, None), kind)]
    if lacking or not callable(getattr(found, "advantages", None)):
        raise InputError(
            f"estimator: {name} is no estimator; it needs needs_value (true or false), min_samples (a number) and a "
            "method advantages(tokens, answers, config)"
        )
    return found  # type: ignore[no-any-return]
