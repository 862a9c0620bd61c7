"""The table of preference sets (paper, table 6) and the shares of its annotation (section 3.1 and table 26).

The paper does not define its columns. Here (decision 14): a turn is one user's message with the answer to it; prompt
tokens are the mean length of a user's message, response tokens that of the two compared answers, example tokens the
whole dialogue with either answer; lengths are of the contents alone. For sets of one turn example = prompt + response,
as there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import STRENGTHS, Preference
from rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEANS = ("turns", "tokens_per_example", "tokens_per_prompt", "tokens_per_response")


def preference_statistics(rows: Sequence[Preference], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The table's figures and the shares of one set.

    Returns comparisons; turns, tokens_per_example, tokens_per_prompt, tokens_per_response (means over comparisons,
    messages and answers); longer_wins (share of the pairs whose answers differ in tokens); strength (share of each,
    "unlabelled" included) and safety (shares of the rows with two labels: chosen_safe_other_unsafe, both_safe,
    both_unsafe; None where no row has them). InputError where there are no rows.
    """
    if not rows:
        raise InputError("preferences: there are no rows to count")
    messages = [m for row in rows for m in row.messages]
    users = _tokens(tokenizer, [m["content"] for m in messages if m["role"] == "user"])
    others = _tokens(tokenizer, [m["content"] for m in messages if m["role"] != "user"])
    chosen = _tokens(tokenizer, [row.chosen for row in rows])
    rejected = _tokens(tokenizer, [row.rejected for row in rows])
    answers = (sum(chosen) + sum(rejected)) / 2
    differing = [c > r for c, r in zip(chosen, rejected, strict=True) if c != r]
    strengths: Counter[str] = Counter(row.strength or "unlabelled" for row in rows)
    return {
        "comparisons": len(rows),
        "turns": len(users) / len(rows),
        "tokens_per_example": (sum(users) + sum(others) + answers) / len(rows),
        "tokens_per_prompt": sum(users) / len(users),
        "tokens_per_response": answers / len(rows),
        "longer_wins": sum(differing) / len(differing) if differing else None,
        "strength": {name: strengths[name] / len(rows) for name in (*STRENGTHS, "unlabelled") if strengths[name]},
        "safety": _safety_shares(rows),
    }


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    """Of each text by itself, without begin, end and chat format."""
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]] if texts else []


def _safety_shares(rows: Iterable[Preference]) -> dict[str, float] | None:
    names = {
        (True, False): "chosen_safe_other_unsafe",
        (True, True): "both_safe",
        (False, False): "both_unsafe",
    }
    labels = [(row.chosen_safe, row.rejected_safe) for row in rows]
    counts = Counter(names[c, r] for c, r in labels if c is not None and r is not None)
    return {name: counts[name] / counts.total() for name in names.values()} if counts else None


def statistics_table(sets: Mapping[str, Sequence[Preference]], tokenizer: PreTrainedTokenizerBase) -> str:
    """The paper's table as text in Markdown: a line a set, and the total of all."""
    heads = ("comparisons", "turns / dialogue", "tokens / example", "tokens / prompt", "tokens / response")
    lines = ["| set | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    figures = {name: preference_statistics(rows, tokenizer) for name, rows in sets.items()}
    for name, line in {**figures, "Total": _total(list(figures.values()))}.items():
        cells = [f"{line['comparisons']:,}", *(f"{line[column]:.1f}" for column in MEANS)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _total(sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table's figures of all sets together: means weigh by comparisons, that of prompts by users' messages."""
    comparisons = [figures["comparisons"] for figures in sets]
    messages = [figures["comparisons"] * figures["turns"] for figures in sets]
    total = {"comparisons": sum(comparisons)}
    for column in MEANS:
        weights = messages if column == "tokens_per_prompt" else comparisons
        total[column] = sum(w * figures[column] for w, figures in zip(weights, sets, strict=True)) / sum(weights)
    return total
