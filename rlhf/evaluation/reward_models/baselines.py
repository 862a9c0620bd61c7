"""What a reward model must beat: the longer answer, and a bag of words. Both are reward functions themselves.

Light: torch when called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast, get_args

from rlhf.conversation import Conversation
from rlhf.data.rows import Domain, Preference
from rlhf.errors import InputError
from rlhf.evaluation.reward_models.pair_scores import PairScore, score_pairs
from rlhf.evaluation.reward_models.preference_figures import RewardFigures, accuracy_figures, by_group, reward_figures
from rlhf.imports import require_packages

if TYPE_CHECKING:
    from torch import Tensor

LONGER_WINS = "longer wins"
BAG_OF_WORDS = "bag of words, {}"
"""Of the rows of a domain, or of both."""


def baseline_scores(test: Sequence[Preference], train: Sequence[Preference]) -> dict[str, list[PairScore]]:
    """name -> scores of the test rows.

    "longer wins"; "bag of words, <domain>" for each domain of the training rows, and "bag of words, both" where they
    have two.
    """
    parts = {domain: [row for row in train if row.domain == domain] for domain in get_args(Domain)}
    parts = {domain: rows for domain, rows in parts.items() if rows}
    if len(parts) > 1:
        parts["both"] = list(train)
    bags = {BAG_OF_WORDS.format(name): score_pairs(BagOfWords(rows), test) for name, rows in parts.items()}
    return {LONGER_WINS: score_pairs(answer_length, test), **bags}


def baseline_figures(
    test: Sequence[Preference], scores: Mapping[str, Sequence[PairScore]]
) -> dict[str, dict[str, RewardFigures]]:
    """name -> group -> figures on the test rows, from `baseline_scores`.

    "longer wins" has `accuracy_figures` alone, as characters are no log-odds; the others all of `reward_figures`.
    """
    lengths = scores[LONGER_WINS]

    def by_length(own: list[int]) -> RewardFigures:
        return cast(RewardFigures, accuracy_figures([test[i] for i in own], [lengths[i] for i in own]))

    others = {name: reward_figures(test, found) for name, found in scores.items() if name != LONGER_WINS}
    return {LONGER_WINS: by_group(test, by_length), **others}


def answer_length(conversations: Sequence[Conversation]) -> Tensor:
    """(n,) float32: characters of the answer. As a reward function: the longer answer wins."""
    import torch

    return torch.tensor([len(conversation[-1]["content"]) for conversation in conversations], dtype=torch.float32)


class BagOfWords:
    """Scores an answer by its words and pairs of words alone; the question is not read.

    Logistic regression on TF-IDF(chosen) - TF-IDF(rejected), without intercept: the ranking loss of a linear score.

    Args:
        preferences: training rows; words and pairs of words that stand in two answers or more are features.
        field: that named the rows, for messages.

    Raises:
        InputError: scikit-learn is not installed; fewer than two rows, or no word that two answers share.
    """

    def __init__(self, preferences: Sequence[Preference], field: str = "train_preferences") -> None:
        require_packages(f"{field}: the bag of words needs", "sklearn")
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        n = len(preferences)
        self._tfidf = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        self._regression = LogisticRegression(fit_intercept=False, max_iter=1000)
        # a difference and its opposite with the opposite label have the same loss; scikit-learn wants both labels
        signs = np.where(np.arange(n) % 2, -1.0, 1.0)
        try:
            answers = [row.chosen for row in preferences] + [row.rejected for row in preferences]
            features = self._tfidf.fit_transform(answers)
            self._regression.fit((features[:n] - features[n:]).multiply(signs[:, None]).tocsr(), signs)
        except ValueError as error:
            raise InputError(
                f"{field}: {n} pairs are too few for a bag of words (it needs two, and words that stand in "
                "two answers); name more rows"
            ) from error

    def __call__(self, conversations: Sequence[Conversation]) -> Tensor:
        """(n,) float32 raw scores; the difference of two is the log-odds that the first is chosen."""
        import torch

        features = self._tfidf.transform([conversation[-1]["content"] for conversation in conversations])
        return torch.from_numpy(features @ self._regression.coef_[0]).float()
