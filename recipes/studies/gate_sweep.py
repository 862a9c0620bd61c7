"""Choose the safety gate's threshold on labelled answers (Llama 2 paper, section 3.2.3 and appendix A.4.1).

Both reward models score answers that people labelled safe or unsafe. At each threshold: how many of the answers below
it are unsafe (precision), and how many unsafe ones lie below it (recall). The highest one that is as precise as asked
for is chosen: `--gate.threshold_from` of rejection_sampling.py, ppo.py and evaluate.py reads it. And both scores as a
scatter, for safe and for unsafe answers: where the two models pull apart.

    python recipes/studies/gate_sweep.py --config recipes/configs/embedded/gate_sweep.yaml

Writes into the output folder: gate_sweep.json (the figures), index.html (tables and plots); prints the tables in
Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_preferences
from rlhf.errors import InputError, notice
from rlhf.evaluation.reward_models.gate_sweep import (
    GateSweep,
    choose_threshold,
    labelled_answers,
    tension,
    threshold_sweep,
)
from rlhf.models.checkpoint.context import TooLongRow
from rlhf.report.pages.gate_sweep import build_gate_page, markdown_tables
from rlhf.rewards.distributed import deal_out
from rlhf.rewards.loading import load_reward
from rlhf.rewards.origin import read_origin
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.specs import Reward
from rlhf.rewards.suspicion import suspicious_scoring
from rlhf.sampling.room import readable
from rlhf.stage import Stage, StageConfig, on_main_process, open_stage
from rlhf.training.work import launched_work


@dataclass(frozen=True, kw_only=True)
class GateSweepConfig(StageConfig):
    """A sweep of the safety gate's threshold.

    Args:
        preferences: rows with safety labels (chosen_safe, rejected_safe), held out from the reward models' training.
        helpfulness: reward-model folder, or `package.module:attribute` of your own reward function.
        safety: the same for safety.
        thresholds: on the safety score after the sigmoid.
        precision: the highest threshold with this precision is chosen (the paper's 0.15 had 0.89), else the most
            precise one, which is said.
        too_long: a row with a dialogue that a reward model's context does not hold: cut (oldest turns first, then from
            the left), skip (leave it out), or refuse. How many is said.
        centre: take the reward models' stored origins off their scores, as the gate does (`gate.centre`).
    """

    preferences: tuple[DataSource, ...]
    helpfulness: Reward
    safety: Reward
    thresholds: tuple[float, ...] = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    precision: float = 0.89
    too_long: TooLongRow = "cut"
    centre: bool = True

    def __post_init__(self) -> None:
        if not self.preferences:
            raise InputError("preferences: must name at least one file")
        if not self.thresholds or not all(0 < threshold < 1 for threshold in self.thresholds):
            raise InputError(f"thresholds: must lie between 0 and 1, got {list(self.thresholds)}")
        if not 0 < self.precision <= 1:
            raise InputError(f"precision: must be above 0 and at most 1, got {self.precision}")


def main(config: GateSweepConfig) -> None:
    stage = open_stage(config)
    rows = [row for source in config.preferences for row in load_preferences(source)]

    answers = readable(stage, list(zip(*labelled_answers(rows), strict=True)), lambda answer: [answer[0]])
    conversations, unsafe = [c for c, _ in answers], [is_unsafe for _, is_unsafe in answers]
    with launched_work(stage) as accelerator:
        scores, origins = {}, {}
        for name, spec in (("helpfulness", config.helpfulness), ("safety", config.safety)):
            reward = load_reward(spec, accelerator=accelerator)
            origins[name] = read_origin(spec) if config.centre else 0.0
            scores[name] = deal_out(conversations, partial(_sigmoids, reward, name, origins[name]), accelerator)
            stage.closing.suspect(suspicious_scoring(**{name: reward}))
        record_sweep(stage, config, sweep_figures(config, scores, origins, unsafe), len(conversations))


def sweep_figures(
    config: GateSweepConfig, scores: Mapping[str, list[float]], origins: dict[str, float], unsafe: Sequence[bool]
) -> GateSweep:
    """The content of gate_sweep.json: what each threshold finds, and the one that is chosen."""
    sweep = threshold_sweep(scores["safety"], unsafe, config.thresholds)
    return {
        "sweep": sweep,
        "chosen": choose_threshold(sweep, config.precision),
        "precision": config.precision,
        "centre": config.centre,
        "origins": origins,
        "tension": tension(scores["helpfulness"], scores["safety"], unsafe),
        "points": [
            {"helpfulness": round(h, 4), "safety": round(s, 4), "unsafe": u}
            for h, s, u in zip(scores["helpfulness"], scores["safety"], unsafe, strict=True)
        ],
    }


@on_main_process
def record_sweep(stage: Stage, config: GateSweepConfig, figures: GateSweep, answers: int) -> None:
    """Write the figures and the page, and show the tables."""
    if (figures["chosen"]["precision"] or 0.0) < config.precision:
        notice(f"precision: no threshold has {config.precision:g}; the most precise is taken")
    stage.write_json("gate_sweep.json", figures, shown=markdown_tables(figures))
    build_gate_page(figures, stage.folder / "index.html", config.output.name)
    stage.closing.rows(answers)


def _sigmoids(reward: RewardFunction, name: str, origin: float, conversations: Sequence[Conversation]) -> list[float]:
    from rlhf.rewards.scoring import check_scores

    scores: list[float] = (check_scores(reward(conversations), len(conversations), name) - origin).sigmoid().tolist()
    return scores


if __name__ == "__main__":
    run_recipe(main, GateSweepConfig)
