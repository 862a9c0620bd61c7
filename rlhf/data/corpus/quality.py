"""A quality gate for SFT rows: is the dialogue consistent, its instruction followed, new, and no refusal?

The paper's section 3.1 puts few clean rows above many: these are the checks of that which a rule can do
(decision 8). A row fails by
the first check that it does not pass.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rlhf.data.corpus.duplicates import Signatures, exact_key, near_duplicates
from rlhf.data.corpus.instructions import instructions_in
from rlhf.data.formats import conversation_of
from rlhf.data.loading import source_rows
from rlhf.data.reading import reason
from rlhf.data.refusals import refusal_in
from rlhf.errors import InputError

CHECKS = ("dialogue", "instruction", "refusal", "duplicate", "near-duplicate")
NEAR = 0.8  # similarity of the words' shingles
REMEMBERED = 1024  # texts whose checks are not made again: many rows have a request or an answer in common


@dataclass(frozen=True)
class Failure:
    """One row that does not pass: its number in the source, the check, and why."""

    number: int
    check: str
    why: str


@dataclass
class Verdict:
    """What the gate found.

    Args:
        rows: how many were read.
        failures: in the rows' order, one a row.
        instructions: how many checkable instructions were found, and how many of them followed, by kind.
    """

    rows: int = 0
    failures: list[Failure] = field(default_factory=list)
    instructions: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """Rows without failure."""
        return self.rows - len(self.failures)

    def counts(self) -> dict[str, int]:
        """Failed rows by check."""
        found = Counter(failure.check for failure in self.failures)
        return {check: found[check] for check in CHECKS}


def check_rows(
    source: str | os.PathLike[str],
    *,
    refuses: Callable[[str], str | None] = refusal_in,
    near: float = NEAR,
) -> Verdict:
    """Run every check over a source of SFT rows (file, folder or hub name), which is read row by row.

    Instructions are read from the last user's message and checked on the last answer. Of duplicates the first stays:
    whole dialogues of the same words; or nearly the same answer to nearly the same messages before it. Memory holds
    two signatures of 400 bytes per row.

    Args:
        source: rows of a format that `rlhf.data.formats.conversation_of` takes.
        refuses: why an answer is a refusal, None where it is none.
        near: similarity from which on two texts are nearly the same, 0 to 1 (Jaccard, of runs of three words).
    """
    if not 0 < near <= 1:
        raise InputError(f"near: must lie above 0 and at most at 1, got {near}")
    verdict = Verdict()
    instructions_of, why_refused = lru_cache(REMEMBERED)(instructions_in), lru_cache(REMEMBERED)(refuses)
    asked, followed = Counter[str](), Counter[str]()
    failed: dict[int, Failure] = {}
    seen: dict[bytes, int] = {}
    numbers: list[int] = []
    answers, requests = Signatures(), Signatures()
    for number, row in source_rows(source):
        verdict.rows += 1
        try:
            dialogue = conversation_of(row)
        except InputError as error:
            failed[number] = Failure(number, "dialogue", str(error))
            continue
        request, answer = dialogue[-2]["content"], dialogue[-1]["content"]
        found = [(i.kind, i.text, i.followed(answer)) for i in instructions_of(request)]
        asked.update(kind for kind, _, _ in found)
        followed.update(kind for kind, _, done in found if done)
        missed = [text for _, text, done in found if not done]
        refusal = why_refused(answer)
        text = "\n".join(message["content"] for message in dialogue)
        first = seen.setdefault(exact_key(text), number)
        if missed:
            failed[number] = Failure(number, "instruction", "; ".join(missed))
        elif refusal is not None:
            failed[number] = Failure(number, "refusal", refusal)
        elif first != number:
            failed[number] = Failure(number, "duplicate", f"of row {first}")
        else:
            numbers.append(number)
            answers.add(answer)
            requests.add("\n".join(message["content"] for message in dialogue[:-1]))
    for later, earlier in near_duplicates(answers.matrix(), requests.matrix(), threshold=near).items():
        failed[numbers[later]] = Failure(numbers[later], "near-duplicate", f"of row {numbers[earlier]}")
    verdict.failures = [failed[number] for number in sorted(failed)]
    verdict.instructions = {kind: (asked[kind], followed[kind]) for kind in sorted(asked)}
    return verdict


def passing_rows(source: str | os.PathLike[str], verdict: Verdict) -> Iterator[dict[str, Any]]:
    """The rows that passed, in our own format: {"messages", and the row's "id" and "source" where it has them}."""
    bad = {failure.number for failure in verdict.failures}
    for number, row in source_rows(source):
        if number not in bad:
            kept: dict[str, Any] = {name: row[name] for name in ("id", "source") if name in row}
            yield {**kept, "messages": conversation_of(row)}


def verdict_text(verdict: Verdict, examples: int = 3) -> str:
    """The counts as a table, with the first failures of each check; for the terminal."""
    lines = [f"{'rows':<18}{verdict.rows:>8}"]
    for check, count in verdict.counts().items():
        lines.append(f"{check:<18}{count:>8}{count / max(1, verdict.rows):>9.1%}")
        shown = Counter[str]()
        for failure in verdict.failures:
            if failure.check == check and shown.total() < examples and not shown[reason(failure.why)]:
                shown[reason(failure.why)] += 1
                lines.append(f"    row {failure.number}: {failure.why[:100]}")
    lines.append(f"{'passed':<18}{verdict.passed:>8}{verdict.passed / max(1, verdict.rows):>9.1%}")
    if verdict.instructions:
        lines.append("instructions followed, of those found:")
        lines += [f"    {kind:<18}{done:>4} of {asked}" for kind, (asked, done) in verdict.instructions.items()]
    return "\n".join(lines)
