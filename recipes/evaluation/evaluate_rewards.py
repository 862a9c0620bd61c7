"""How good reward functions are, measured as the paper measures them (Llama 2 paper, section 3.2.2, tables 7 and 8).

Any number of reward functions score the same held-out preferences, each answer once. Every figure is read from these
scores: accuracy overall, by strength, safety labels, source and length, on both domains; calibration; the recall of
unsafe answers. Beside them stand what counting characters and a bag of words would reach on the same rows, and by how
much each reward function beats that bag, pair by pair.

    python recipes/evaluation/evaluate_rewards.py --config recipes/configs/embedded/evaluate_rewards.yaml

Writes into the output folder: reward_evaluation.json (the figures; `rlhf.evaluation.reward_models.preference_figures`
says what each one is) and index.html (tables and plots); prints a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rlhf.configuration import run_recipe
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_preferences
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.evaluation.reward_models.baselines import BAG_OF_WORDS, LONGER_WINS, baseline_figures, baseline_scores
from rlhf.evaluation.reward_models.pair_scores import PairScore, score_pairs
from rlhf.evaluation.reward_models.preference_figures import (
    EvaluatedReward,
    PairedGain,
    RewardEvaluation,
    by_group,
    paired_gain,
    reward_figures,
    true_qualities,
)
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.checkpoint.context import TooLongRow
from rlhf.report.pages.rewards import build_rewards_page, text_table
from rlhf.rewards.distributed import deal_out, dealt_out
from rlhf.rewards.loading import load_reward
from rlhf.rewards.specs import Reward, is_import_path
from rlhf.rewards.suspicion import suspicious_scoring
from rlhf.rewards.training.cut_off import cut_off_figures, suspicious_cut_off
from rlhf.rewards.training.rows import seen_prompts
from rlhf.sampling.room import readable
from rlhf.stage import InputPath, Stage, StageConfig, on_main_process, open_stage
from rlhf.training.work import launched_work


@dataclass(frozen=True, kw_only=True)
class EvaluateRewardsConfig(StageConfig):
    """Evaluation of reward functions.

    Args:
        rewards: name -> reward-model folder, or `package.module:attribute` of your own reward function, or the YAML or
            JSON file of an ensemble.
        test_preferences: held-out rows, files or hub names; a row without a domain counts as helpfulness.
        train_preferences: the reward models' training rows; a bag of words is trained on them for comparison, one on
            each domain's and one on both. Needs scikit-learn.
        scorer: `package.module:Class` of a gold scorer, called with `world`: mean scores by true quality.
        world: the file or folder that the scorer reads.
        too_long: a row with a dialogue that a reward model's context does not hold: cut (oldest turns first, then from
            the left), skip (leave it out), or refuse. How many is said.
        on_bad_row: refuse stops at a bad row, skip leaves it out and counts it.
    """

    rewards: dict[str, Reward]
    test_preferences: tuple[DataSource, ...]
    train_preferences: tuple[DataSource, ...] = ()
    scorer: str | None = None
    world: InputPath | None = None
    too_long: TooLongRow = "cut"
    on_bad_row: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        if not self.rewards:
            raise InputError("rewards: must name at least one reward function, e.g. --rewards.safety FOLDER")
        if not self.test_preferences:
            raise InputError("test_preferences: must name at least one file")
        if (self.scorer is None) != (self.world is None):
            raise InputError("scorer, world: a gold scorer needs its world; name both or neither")


def main(config: EvaluateRewardsConfig) -> None:
    stage = open_stage(config)
    read = _load(config.test_preferences, config)
    test = readable(stage, read, lambda row: [row.conversation("chosen"), row.conversation("rejected")])
    train = _load(config.train_preferences, config)
    scorer = load_scorer(config.scorer, config.world) if config.scorer and config.world else None

    imported = {spec: load_reward(spec) for spec in config.rewards.values() if is_import_path(spec)}
    qualities = None if scorer is None else true_qualities(test, scorer)
    beside = baseline_scores(test, train)
    baselines = baseline_figures(test, beside)
    with launched_work(stage) as accelerator:
        rewards: dict[str, EvaluatedReward] = {}
        for name, spec in config.rewards.items():
            reward = imported.get(spec) or load_reward(spec, accelerator=accelerator)
            scores = deal_out(test, partial(score_pairs, reward), accelerator)
            cut_off = cut_off_figures(dealt_out(reward, accelerator), test, [score.chosen for score in scores])
            stage.closing.suspect(suspicious_scoring(**{f"rewards.{name}": reward}))
            stage.closing.suspect([f"{name}: {sentence}" for sentence in suspicious_cut_off(cut_off)])
            rewards[name] = {
                "spec": spec,
                "groups": reward_figures(test, scores, qualities),
                "over_bag_of_words": over_bag_of_words(test, scores, beside),
                **cut_off,
            }
        evaluation: RewardEvaluation = {
            "test_pairs": {group: figures["pairs"] for group, figures in baselines[LONGER_WINS].items()},
            "test_prompts_in_training": seen_prompts(test, train) if train else None,
            "rewards": rewards,
            "baselines": baselines,
        }
        record_rewards(stage, config, evaluation, len(test))


def over_bag_of_words(
    test: Sequence[Preference], scores: Sequence[PairScore], beside: Mapping[str, Sequence[PairScore]]
) -> dict[str, PairedGain]:
    """Domain -> the gain over the bag of words of that domain's training pairs, where there is one, on the same pairs.

    Args:
        scores: of the test rows.
        beside: theirs by the baselines.
    """
    rows = by_group(test, lambda own: own)
    return {
        domain: paired_gain([scores[i].hit for i in own], [bag[i].hit for i in own])
        for domain, own in rows.items()
        if (bag := beside.get(BAG_OF_WORDS.format(domain)))
    }


@on_main_process
def record_rewards(stage: Stage, config: EvaluateRewardsConfig, evaluation: RewardEvaluation, pairs: int) -> None:
    """Write the figures of the test pairs and the page, and show the table."""
    stage.closing.rows(pairs)
    stage.write_json("reward_evaluation.json", evaluation, shown=text_table(evaluation))
    build_rewards_page(evaluation, stage.folder / "index.html", config.output.name)


def _load(sources: tuple[str, ...], config: EvaluateRewardsConfig) -> list[Preference]:
    return [row for source in sources for row in load_preferences(source, on_bad_row=config.on_bad_row)]


if __name__ == "__main__":
    run_recipe(main, EvaluateRewardsConfig)
