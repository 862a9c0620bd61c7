"""A PPO stage on the page: its curves over the iterations, and what its rules warned of."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, Panel, Series, lines
from rlhf.report.run.reading import Ppo

MOST_WARNINGS = 12


def ppo_panels(stage: Ppo) -> list[Panel]:
    """What the policy earns, how far it went for it, what its answers are like, and how the update went."""
    x = [float(row.get("step", i)) for i, row in enumerate(stage.metrics)]

    def of(label: str, colour: str, key: str, dashed: bool = False) -> Series:
        values = [row.get(key) for row in stage.metrics]
        return Series(label, colour, x, values, _ci(stage, key), dashed=dashed, markers=key.startswith("heldout_"))

    def panel(
        title: str, series: Sequence[Series], note: str, percent: bool = False, reference: float | None = None
    ) -> Panel | None:
        """Of figures whose 0 says nothing."""
        return lines(title, series, x_label="iteration", percent=percent, reference=reference, steady=True, note=note)

    def amount(title: str, series: Sequence[Series], note: str, percent: bool = False) -> Panel | None:
        """Of figures that are none at 0."""
        return lines(title, series, x_label="iteration", percent=percent, from_zero=True, steady=True, note=note)

    best = None if stage.result is None else stage.result.get("best_iteration")
    kept = "" if best is None else f" The checkpoint of iteration {best} was kept."
    if best == 0:
        kept = " The start was kept: no later policy had a better reward."
    found = [
        panel(
            "Reward",
            [of("training prompts", GREY, "reward"), of("held-out prompts", BLUE, "heldout_reward")],
            "Held-out prompts, the same ones each time, tell whether it rises, more surely than their intervals look; "
            f"training prompts are others at each iteration, so most of their zigzag is chance.{kept}",
        ),
        panel(
            "Both models, held-out",
            [of("helpfulness", BLUE, "heldout_helpfulness"), of("safety", ORANGE, "heldout_safety")],
            "Mean raw scores over all held-out prompts: one that falls pays for the other.",
        ),
        panel(
            "Referee, held-out",
            [of("referee", INK, "heldout_referee")],
            "A reward that trains nothing. Where it falls while the reward rises, the gain is not real; its 95 % "
            "intervals are over the prompts.",
        ),
        amount(
            "KL from the starting policy",
            [of("k1", GREY, "kl"), of("k3", ORANGE, "kl_k3", True), of("k1, held-out", BLUE, "heldout_kl")],
            "Nats per answer at the sampling temperature, by two estimators: where they part, neither is sure.",
        ),
        amount("Entropy", [of("entropy", INK, "entropy")], "Nats per token; towards 0 the answers become all alike."),
        amount("Length", [of("tokens", INK, "length")], "Tokens per answer: a gain in reward is often length."),
        amount(
            "Answers",
            [
                of("ended", BLUE, "finished_share"),
                of("repetition", ORANGE, "repetition"),
                of("safety decides", GREY, "gate_share", True),
            ],
            "Shares: with an end token; of repeated 4-grams; where the safety score is the reward.",
            percent=True,
        ),
        amount("Clipped tokens", [of("clipped", INK, "clip_fraction")], "Share that the clip holds.", percent=True),
        panel(
            "Explained variance",
            [of("value", INK, "explained_variance")],
            "Of the returns, by the value model; at 0 and below it is no better than their mean.",
            reference=0.0,
        ),
        amount("Gradient norm", [of("norm", INK, "grad_norm")], "Before clipping."),
    ]
    return [panel for panel in found if panel is not None]


def _ci(stage: Ppo, key: str) -> list[list[float] | None]:
    """95 % intervals from the standard errors, where the metrics have them."""
    intervals: list[list[float] | None] = []
    for row in stage.metrics:
        mean, error = row.get(key), row.get(f"{key}_error")
        intervals.append(None if mean is None or error is None else [mean - 1.96 * error, mean + 1.96 * error])
    return intervals


def ppo_warnings(stage: Ppo) -> list[str]:
    """The newest warnings of the stage's rules, each with its iteration."""
    found = [f"Iteration {row.get('step')}: {text}" for row in stage.metrics for text in row.get("warnings") or []]
    return found[-MOST_WARNINGS:]
