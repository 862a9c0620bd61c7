"""Studies of reward models: variants of one training, each on several seeds, measured on held-out rows of both domains.

Paper, section 3.2.2: one model a domain against one for both (table 7), data scaling (figure 6); appendices A.3.3 and
A.3.4: the ablations of the margin and of the auxiliary safety loss. Torch is loaded late.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml

from rlhf.configuration import parse_config, to_yaml
from rlhf.data.fields import DataSource
from rlhf.data.mixing import mix
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.evaluation.reward_models.baselines import BagOfWords
from rlhf.evaluation.reward_models.pair_scores import score_pairs
from rlhf.evaluation.reward_models.preference_figures import PairedGain, by_group, paired_gain, reward_figures
from rlhf.models.checkpoint.fields import WholeCheckpoint
from rlhf.rewards.distributed import deal_out
from rlhf.rewards.loading import load_reward
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.kinds import REWARD_KINDS
from rlhf.rewards.training.stage import train_and_save
from rlhf.rewards.training.table import PairTable
from rlhf.stage import Stage, open_stage
from rlhf.studies.runner import StudyRun, over_seeds
from rlhf.training.work import training_work

if TYPE_CHECKING:
    from accelerate import Accelerator

Rows = Mapping[str, Sequence[Preference]]
FIGURES = "figures.json"


@dataclass(frozen=True)
class StudyModel:
    """One reward model. In each path {run} stands for the seed's run folder.

    Args:
        policy: chat checkpoint to start from.
        preferences: training rows, files or hub names; a row without a domain counts as helpfulness.
        learns: its own rows are those of one domain, or all of them (joint). The safety model alone has a safety head.
        other_share: share of the other domain's rows in the whole mixture.
        weights: the policy's own; or random ones of its architecture, by the seed: what pretraining is worth.
        training: margins, weight of the safety labels, lengths and the optimizer.
    """

    policy: Annotated[str, WholeCheckpoint(trained=True)]
    preferences: tuple[DataSource, ...]
    learns: Literal["helpfulness", "safety", "joint"] = "helpfulness"
    other_share: float = 0.0
    weights: Literal["policy", "random"] = "policy"
    training: RewardTrainingConfig = field(default_factory=RewardTrainingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.other_share < 1:
            raise InputError(f"other_share: must lie in [0, 1), got {self.other_share}")
        if not self.preferences:
            raise InputError("preferences: must name at least one file")
        if self.weights == "random" and self.training.adapter is not None:
            raise InputError("weights: random ones are trained whole, not by an adapter; set training.adapter to null")


@dataclass(frozen=True, kw_only=True)
class RewardStudyRun(StudyRun):
    """One training of a reward model: `fraction` of its own training rows, measured on test_preferences."""

    variant: str
    model: StudyModel
    test_preferences: tuple[DataSource, ...]


def make_variant(model: StudyModel, name: str, overrides: Mapping[str, Any]) -> StudyModel:
    """`model` with other values of the options named, as on the command line: {"training.margin": "large"}.

    Raises:
        InputError: an option that a `StudyModel` does not have, or a value that it refuses.
    """
    flags = [text for option, value in overrides.items() for text in (f"--{option}", _argument(value))]
    try:
        return parse_config(StudyModel, ["--config", to_yaml(model), *flags])
    except InputError as error:
        raise InputError(f"variants.{name}: {error}") from error


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()


def training_rows(model: StudyModel, rows: Sequence[Preference], fraction: float, seed: int) -> list[Preference]:
    """`fraction` of the model's own rows, and the other domain's as `other_share` says (`rlhf.data.mixing.mix`).

    With one seed a smaller fraction's own rows are among a larger one's.

    Raises:
        InputError: there are no own rows.
    """
    own = [row for row in rows if model.learns in ("joint", row.domain)]
    if not own:
        raise InputError(f"preferences: {', '.join(model.preferences)} hold no row of domain {model.learns}")
    random.Random(seed).shuffle(own)
    own = own[: max(1, round(fraction * len(own)))]
    return mix(own, [row for row in rows if model.learns not in ("joint", row.domain)], model.other_share, seed)


def run_model(run: RewardStudyRun, rows: Rows) -> None:
    """Train, save and measure one model: checkpoint/, metrics.jsonl and figures.json in its stage folder.

    Args:
        rows: source -> its rows, of all sources that the run names.
    """
    from rlhf.rewards.training.train import fitting_pairs

    policy, config = Path(run.model.policy), run.model.training
    stage = open_stage(run)
    mixture = training_rows(run.model, pick(rows, run.model.preferences), run.fraction, run.seed)
    train = fitting_pairs(policy, mixture, config, "preferences")
    held_out = fitting_pairs(policy, pick(rows, run.test_preferences), config, "test_preferences")
    test = [pair.preference for pair in held_out]
    bag = score_pairs(BagOfWords([pair.preference for pair in train], "preferences"), test)
    with training_work(stage) as accelerator, starting_weights(run, stage, accelerator) as policy:
        learns = run.model.learns
        safety_head = learns != "joint" and REWARD_KINDS[learns].safety_head
        train_and_save(stage, accelerator, policy, PairTable.of(train), config, safety_head=safety_head, seed=run.seed)
        reward = load_reward(stage.folder / "checkpoint", accelerator=accelerator)
        scores = deal_out(test, lambda part: score_pairs(reward, part), accelerator)
        figures = {
            "training_pairs": len(train),
            "test_pairs": len(test),
            "groups": reward_figures(test, scores),
            "hits": by_group(test, lambda own: [scores[i].hit for i in own]),
            "bag_of_words": by_group(test, lambda own: [bag[i].hit for i in own]),
        }
        stage.write_json(FIGURES, figures)


@contextmanager
def starting_weights(run: RewardStudyRun, stage: Stage, accelerator: Accelerator) -> Iterator[Path]:
    """The checkpoint that the training starts from: the policy's, or an untrained one that is gone afterwards."""
    from rlhf.models.pretraining import write_untrained

    if run.model.weights == "policy":
        yield Path(run.model.policy)
        return
    folder = stage.folder / "untrained"
    if accelerator.is_main_process:
        write_untrained(run.model.policy, folder, run.seed)
    accelerator.wait_for_everyone()
    yield folder
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder)


def pick(rows: Rows, sources: Sequence[str]) -> list[Preference]:
    """The rows of these sources, in order."""
    return [row for source in sources for row in rows[source]]


def gather(runs: Sequence[RewardStudyRun], output: Path, baselines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What study.json holds: every figure's mean and 95 % interval (Student's t) over the seeds.

    Args:
        runs: all finished, in `output`; variants in the order to show, each with the same fractions and seeds.
        baselines: `rlhf.evaluation.reward_models.baselines.baseline_figures` of each run folder.

    Returns:
        {"models": [{"variant", "fraction", "training_pairs": mean, "groups": {group: {"figures": {figure: {"mean",
        "ci", "values": one a seed, "gain", "gain_ci": against the first variant with the same fraction and seed, None
        for itself}}, "histogram": counts summed over the seeds, "over_bag_of_words": `paired_gains` of the seeds over
        bags of words of the same training pairs}}}], "baselines": {name: {group: {"figures": …}}}}.
        Groups, figures: `rlhf.evaluation.reward_models.preference_figures`; one is left out unless all seeds have it.
    """
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    tests: dict[tuple[str, float], list[tuple[str, ...]]] = {}
    for run in runs:
        tests.setdefault((run.variant, run.fraction), []).append(run.test_preferences)
        figures = json.loads((output / run.name / FIGURES).read_text(encoding="utf-8"))
        found.setdefault((run.variant, run.fraction), []).append(figures)
    first = runs[0].variant
    models = []
    for (variant, fraction), seeds in found.items():
        reference = None if variant == first else found[first, fraction]
        groups = {
            group: {
                "figures": _figures(
                    [seed["groups"][group] for seed in seeds],
                    reference and [seed["groups"][group] for seed in reference],
                )
                | bag_figures(seeds, group),
                "over_bag_of_words": paired_gains(seeds, tests[variant, fraction], group),
                "histogram": _summed([seed["groups"][group]["calibration"]["histogram"] for seed in seeds]),
            }
            for group in seeds[0]["groups"]
        }
        pairs = sum(seed["training_pairs"] for seed in seeds) / len(seeds)
        models.append({"variant": variant, "fraction": fraction, "training_pairs": pairs, "groups": groups})
    names = dict.fromkeys(name for one in baselines for name in one)
    return {
        "models": models,
        "baselines": {
            name: {
                group: {"figures": _figures([one[name][group] for one in baselines], None)}
                for group in baselines[0][name]
            }
            for name in names
        },
    }


def bag_figures(seeds: Sequence[Any], group: str) -> dict[str, dict[str, Any]]:
    """{"bag_of_words": `over_seeds` of the accuracy of bags of words of the same training pairs}, where there are."""
    hits = [seed["bag_of_words"][group] for seed in seeds if "bag_of_words" in seed]
    return {"bag_of_words": over_seeds([fmean(own) for own in hits], gain=None)} if len(hits) == len(seeds) else {}


def paired_gains(seeds: Sequence[Any], tests: Sequence[tuple[str, ...]], group: str) -> PairedGain | None:
    """The gain over bags of words of the same training pairs, on the same test pairs; None for older figures.

    The pair is the unit: its hits are averaged over the seeds that share its test set.

    Args:
        seeds: figures.json of each; tests: the test set of each, by its sources.
    """
    if not all("hits" in seed for seed in seeds):
        return None
    hits: list[float] = []
    others: list[float] = []
    for test in dict.fromkeys(tests):
        own = [seed for seed, of in zip(seeds, tests, strict=True) if of == test]
        hits += [fmean(pair) for pair in zip(*(seed["hits"][group] for seed in own), strict=True)]
        others += [fmean(pair) for pair in zip(*(seed["bag_of_words"][group] for seed in own), strict=True)]
    return paired_gain(hits, others)


def flat_figures(group: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one group of `reward_figures` (or `accuracy_figures`) by name, those that it has.

    accuracy; accuracy.<bin> of strength, safety labels and length; prefers_longer; nll, ece, brier;
    lead.<strength>; unsafe_recall, safe_flagged, matched_recall, and the same of the safety head as head_<name>.
    """
    figures = {"accuracy": group["accuracy"], "prefers_longer": group["prefers_longer"]["share"]}
    for bins in ("by_strength", "by_safety", "by_length"):
        figures |= {f"accuracy.{name}": bin_["accuracy"] for name, bin_ in group[bins].items()}
    if calibration := group.get("calibration"):
        figures |= {name: calibration[name] for name in ("nll", "ece", "brier")}
        leads = calibration["difference_by_strength"]
        figures |= {f"lead.{name}": bin_["mean"] for name, bin_ in leads.items()}
    for reader, prefix in (("score", ""), ("safety_head", "head_")):
        if flagged := (group.get("unsafe_recall") or {}).get(reader):
            figures[f"{prefix}unsafe_recall"] = flagged["recall"]
            figures[f"{prefix}safe_flagged"] = flagged["safe_flagged"]
            figures[f"{prefix}matched_recall"] = flagged["matched_recall"]
    return {name: value for name, value in figures.items() if value is not None}


def _figures(seeds: Sequence[Any], reference: Sequence[Any] | None) -> dict[str, dict[str, Any]]:
    """Figure -> `over_seeds`, of those that all seeds have; the gain where all of the reference have it too."""
    own = [flat_figures(seed) for seed in seeds]
    base = [flat_figures(seed) for seed in reference or ()]
    found = {}
    for name in own[0]:
        if all(name in figures for figures in own):
            known = bool(base) and all(name in figures for figures in base)
            before = [figures[name] for figures in base] if known else None
            found[name] = over_seeds([figures[name] for figures in own], gain=before)
    return found


def _summed(histograms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of all seeds together, over the same edges."""
    chosen, rejected = (
        [sum(bins) for bins in zip(*(h[which] for h in histograms), strict=True)] for which in ("chosen", "rejected")
    )
    return {"edges": histograms[0]["edges"], "chosen": chosen, "rejected": rejected}
