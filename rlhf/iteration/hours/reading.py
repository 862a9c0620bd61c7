"""One stage as its work is counted: its settings, the rows that it reads, and what they come to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlhf.iteration.hours.counts import Counts, Rows, read_any, together
from rlhf.iteration.hours.speed import Work, written
from rlhf.iteration.plan import PlannedStage

ROWS_AT_ONCE = 512
"""Most answers that a process writes at once where the settings leave it to memory."""


class Unknown(Exception):
    """Nothing is known of what an option names yet."""


class Reading:
    """One stage with its settings and what it reads; raises Unknown for what is not known."""

    def __init__(
        self, stage: PlannedStage, config: Any, counts: Counts, characters_per_token: float, answer_share: float
    ) -> None:
        self.stage, self.config, self.counts = stage, config, counts
        self.per_token, self.answer_share = characters_per_token, answer_share

    def rows(self, option: str) -> Rows:
        """What an option names."""
        found = self.counts.rows(self.stage, option)
        if found is None:
            raise Unknown(option)
        return found

    def needed(self, option: str) -> Rows:
        """The same of an option that the plan has to name."""
        if option not in self.stage.overrides:
            raise Unknown(option)
        return self.rows(option)

    @property
    def earlier_prompts(self) -> float:
        """How many prompts earlier versions had that this one does not have."""
        return 0.0 if self.counts.shared_by_versions(self.stage, "prompts") else self.rows("earlier_prompts").number

    def named(self, *sources: str | Path) -> Rows:
        """What the settings name: local files."""
        found = [read_any(source) for source in sources]
        if unknown := [source for source, rows in zip(sources, found, strict=True) if rows is None]:
            raise Unknown(str(unknown[0]))
        return together([rows for rows in found if rows is not None])

    def tokens(self, rows: Rows, most: int | None = None) -> float:
        """Mean tokens of a row, `most` at most."""
        found = rows.characters / self.per_token
        return found if most is None else min(found, most)

    def pair_tokens(self, pairs: Rows, most: int | None) -> float:
        """Mean tokens of a preference, computed as one: its prompt once. A dialogue has `most` at most.

        Most prompts are short and few very long, so that the mean of what is left of them is far below the mean's: they
        are taken to be spread exponentially.
        """
        answer, prompt = (n / self.per_token for n in (pairs.answers / 2, pairs.characters - pairs.answers))
        if most is not None and prompt:
            answer = min(answer, most)
            prompt *= 1 - math.exp((answer - most) / prompt)
        return prompt + 2 * answer

    @property
    def answer(self) -> float:
        """Mean tokens of an answer that is drawn."""
        return self.answer_share * float(self.config.sampling.max_new_tokens)

    def written(self, answers: float, at_once: float | None = None) -> Work:
        """Answers drawn with the stage's settings, the processes side by side.

        at_once: most that a process writes; None: as the settings say.
        """
        processes = self.stage.processes
        most = self.config.policy.rows or ROWS_AT_ONCE if at_once is None else at_once
        each = answers / processes
        return written(each, self.answer, min(most, max(each, 1)), self.config.sampling.max_new_tokens) * processes

    def judged(self, prompts: float, asked: float, answers: float) -> Work:
        """What one reward model does with so many answers to each prompt, which are run at once behind it."""
        return Work(score_passes=prompts, score_tokens=prompts * (asked + answers * self.answer))

    @property
    def judges(self) -> int:
        """Reward models that score an answer."""
        return sum(getattr(self.config, name, None) is not None for name in ("helpfulness", "safety"))

    @property
    def own_share(self) -> float:
        """Of a fine-tuning's rows those that the stage made itself; others are mixed in."""
        mixed = (("sft_data", "sft_share"), ("mixed_data", "mixed_share"))
        named = (share for data, share in mixed if data in self.stage.overrides or getattr(self.config, data, None))
        return 1 - sum(float(getattr(self.config, share)) for share in named)
