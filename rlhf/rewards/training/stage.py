"""The stage that both reward recipes run: read the rows, mix them, train, save and measure. Torch is loaded late."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf.data.fields import DataSources
from rlhf.data.loading import sources_of
from rlhf.data.rows import Domain
from rlhf.errors import InputError
from rlhf.models.checkpoint.fields import TrainedCheckpoint
from rlhf.models.policy import load_tokenizer
from rlhf.rewards.origin import write_origin
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.kinds import REWARD_KINDS
from rlhf.rewards.training.mixture import make_mixture, mixture_lines, mixture_report
from rlhf.rewards.training.rows import RewardRows
from rlhf.rewards.training.table import PairTable
from rlhf.rewards.training.tokenized import Tokenizing, open_reward_rows, write_reward_rows
from rlhf.stage import KeepingConfig, Stage, made_once, open_stage
from rlhf.training.kept import RESUME
from rlhf.training.loop import TrainingResult
from rlhf.training.work import close_training, training_work

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rlhf.models.reward_model import RewardModel


@dataclass(frozen=True, kw_only=True)
class RewardStageConfig(KeepingConfig):
    """What both reward recipes have in common.

    Args:
        policy: chat checkpoint to start from.
        preferences: a file or hub name, or several; their rows of the model's domain are its own. `NAME#safety` says
            that all rows of NAME are about safety.
        other_preferences: the same (may be the same files); their rows of the other domain, and all rows of files
            without domains, are what is mixed in.
        other_share: share of those in the whole mixture.
        cut_off_share: how many pairs are added in which a chosen answer stands against itself cut off, as a share of
            the model's own; a reward model that has never read such an answer may like it.
        test_preferences: held-out rows of both domains, for accuracy.json.
        on_bad_row: refuse stops at a bad row, skip leaves it out and counts it.
        seed: of the heads, the mixture and the order of the rows.
        training: margins, weight of the safety labels, lengths and the optimizer.
    """

    policy: TrainedCheckpoint
    preferences: DataSources
    other_preferences: DataSources = ()
    other_share: float = 0.0
    cut_off_share: float = 0.0
    test_preferences: DataSources = ()
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    seed: int = 0
    training: RewardTrainingConfig = field(default_factory=RewardTrainingConfig)

    def __post_init__(self) -> None:
        for name in ("preferences", "other_preferences", "test_preferences"):
            object.__setattr__(self, name, sources_of(getattr(self, name)))
        if not 0 <= self.other_share < 1:
            raise InputError(f"other_share: must lie in [0, 1), got {self.other_share}")
        if not 0 <= self.cut_off_share <= 1:
            raise InputError(f"cut_off_share: must lie in [0, 1], got {self.cut_off_share}")
        if not self.preferences:
            raise InputError("preferences: must name at least one file")


def run_reward_stage(domain: Domain, config: RewardStageConfig) -> None:
    """Write checkpoint/ with its score_origin.json, metrics.jsonl, mixture.json and accuracy.json into the folder.

    Its rows are read and tokenized by the main process, and by all of them mapped into memory (`tokenized`).

    Raises:
        InputError: before the model is loaded, for a missing file or a bad row.
    """
    stage = open_stage(config)
    tokenizing = Tokenizing(config.policy, config.training)

    def make(folder: Path) -> None:
        others = config.other_preferences if config.other_share else ()
        sources = config.preferences, others, config.test_preferences
        write_reward_rows(
            folder,
            tokenizing,
            domain,
            *sources,
            config.on_bad_row,
            cut_off_share=config.cut_off_share,
            seed=config.seed,
        )

    with made_once(stage, "pairs", make) as folder, training_work(stage) as accelerator:
        rows = open_reward_rows(folder, domain)
        mixture = make_mixture(rows, config.other_share, config.seed)
        if config.training.too_long == "refuse":
            tokenizing.require_fit(mixture.rows)
        stage.say("\n".join(mixture_lines(mixture)), error=True)
        stage.write_json("mixture.json", mixture_report(mixture, rows.skipped))
        train_and_save(
            stage,
            accelerator,
            config.policy,
            mixture.training,
            config.training,
            safety_head=REWARD_KINDS[domain].safety_head,
            seed=config.seed,
        )
        for field in ("preferences", "other_preferences"):
            stage.closing.rows(len(mixture.training), sum(rows.skipped[field].values(), Counter()))
        record_accuracy(stage, accelerator, domain, config.seed, mixture.rows, rows)


def record_accuracy(
    stage: Stage,
    accelerator: Accelerator,
    domain: Domain,
    seed: int,
    trained: PairTable,
    rows: RewardRows,
) -> None:
    """Write where the saved model's scores have their origin, and how it orders the held-out pairs; the closing block
    gets that too. Every process calls it and scores its part.

    Args:
        trained: the people's pairs that it was trained on.
        rows: all pairs, cut as training cuts them.
    """
    from rlhf.rewards.distributed import dealt_out
    from rlhf.rewards.loading import load_reward
    from rlhf.rewards.training.accuracy import heldout_report, origin_of, suspicious_accuracy

    checkpoint = stage.folder / "checkpoint"
    reward = dealt_out(load_reward(checkpoint, accelerator=accelerator), accelerator)
    origin = origin_of(reward, trained.preferences, seed, labelled=REWARD_KINDS[domain].safety_head)
    if stage.is_main:
        write_origin(checkpoint, origin)
    report = heldout_report(reward, domain, rows, origin.origin)
    stage.write_json("accuracy.json", report)
    stage.closing.figures(**{name: report[name] for name in ("pairs", "accuracy", "longer_wins")})
    stage.closing.suspect(suspicious_accuracy(report))


def train_and_save(
    stage: Stage,
    accelerator: Accelerator,
    policy: Path,
    pairs: PairTable,
    config: RewardTrainingConfig,
    *,
    safety_head: bool,
    seed: int,
) -> RewardModel:
    """Train a reward model inside `stage.work`, which keeps `kept_states`, and write <stage>/checkpoint.

    The studies' trainings too. The closing block gets rows, loss and what looks wrong.

    Args:
        pairs: the mixture, the same on every process.
        safety_head, seed: see `train_on_pairs`.
    """
    from rlhf.rewards.training.train import suspicious_margins, train_on_pairs

    result = TrainingResult()
    model = train_on_pairs(
        policy,
        pairs,
        config,
        accelerator,
        stage.log,
        safety_head=safety_head,
        seed=seed,
        states=stage.folder / RESUME,
        result=result,
    )
    close_training(stage, result)
    stage.closing.suspect(suspicious_margins(pairs.strengths(), config))
    merge = config.adapter is None or config.adapter.merge
    model.save(stage.folder / "checkpoint", load_tokenizer(policy), accelerator, merge=merge)
    return model
