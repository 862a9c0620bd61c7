"""Rejection-sampling fine-tuning (Llama 2 paper, section 3.2.3).

Sample K answers to each prompt from the newest policy, score them with the newest reward models, keep the best answer
of each prompt, and fine-tune on the kept ones as in SFT. Every version starts its fine-tuning from the same checkpoint.
The best is taken over the answers of ALL versions so far, rescored with the newest reward models: choosing among the
last version's alone made the paper's V3 forget skills.

    accelerate launch recipes/rejection_sampling.py --config recipes/configs/embedded/rejection_sampling.yaml

Writes into the output folder: checkpoint/, completions.parquet (this version's answers, scored: the pool of the next
versions), selected.jsonl (the dialogues it trained on), selection.json (rewards, best-of-k curve, versions chosen),
metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_conversations, load_prompts
from rlhf.data.rows import Completion, Prompt
from rlhf.data.suspicion import no_room_share, suspicious_answers
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig, MixedFinetuneConfig
from rlhf.finetuning.stage import finetune_stage
from rlhf.models.checkpoint.fields import TrainedCheckpoint
from rlhf.rejection.figures import RoundFigures, selection_figures, suspicious_choice
from rlhf.rejection.pool import completions_of, pool_sizes, prompts_by_id, read_pool, rescore, write_completions
from rlhf.rejection.selection import Selection, SelectionConfig, refuse_empty, select_as_one, selected_rows
from rlhf.rejection.temperature import read_best_temperature
from rlhf.rewards.gate import GatedReward, GatedRewards
from rlhf.rewards.gated_config import GatedConfig
from rlhf.rewards.specs import are_checkpoints, kept_scores
from rlhf.sampling.early_rejection import EarlyRejection, EarlyRejectionConfig
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler, renderer_of
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import with_room
from rlhf.sampling.shards import kept_samples
from rlhf.sampling.source import PolicySource, TokenizedPolicy
from rlhf.stage import InputPath, Kept, Stage, on_main_process, open_stage
from rlhf.training.kept import RESUME
from rlhf.training.work import training_work

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class RejectionSamplingConfig(MixedFinetuneConfig, GatedConfig):
    """Rejection-sampling fine-tuning.

    Args:
        policy: whose answers are sampled, the newest (docs/policies.md).
        fine_tune_from: checkpoint folder that the fine-tuning starts from, the same for every version.
        prompts: prompts to answer (file or hub name); those of domain "safety" are rewarded for safety alone.
        pool: folder of earlier versions' `<version>.parquet`; null: choose among this version's answers only.
        pool_top: of each earlier version rescore only its best answers to a prompt, this many, to save work; 0: all.
        earlier_prompts: prompts of earlier versions (files or hub names) that are not asked again: the pool's answers
            to them are chosen among too.
        version: name of this version in the pool.
        num_samples: K, answers drawn for each prompt; 0: none, and the pool's alone are chosen among: a control of the
            rounds that drew them.
        sampling: how they are drawn.
        temperature_from: sweep.json of recipes/studies/temperature_sweep.py: draw at its best temperature instead.
        selection: which answers are kept; the best one of each prompt, unless told otherwise.
        early_rejection: give up a prompt's worst answers while they are written (arXiv 2410.20290); null: write all.
        quantization: nf4 holds the fine-tuned weights in 4 bit, which needs an adapter; null: as they are.
        seed: added to sampling.seed; also of the mix, the rows' order and dropout.
    """

    policy: TokenizedPolicy
    fine_tune_from: TrainedCheckpoint
    prompts: DataSource
    pool: InputPath | None = None
    pool_top: int = 0
    earlier_prompts: tuple[DataSource, ...] = ()
    sft_share: float = 0.2
    version: str = "v1"
    num_samples: int = 16
    sampling: SamplingParams = field(default_factory=SamplingParams)
    temperature_from: InputPath | None = None
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    early_rejection: EarlyRejectionConfig | None = None
    finetuning: FinetuningConfig = field(default_factory=lambda: FinetuningConfig(train="last", on_bad_row="skip"))
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate.require_safety(self.safety)
        if self.num_samples < 0:
            raise InputError(f"num_samples: must be at least 1, or 0 for the pool's alone, got {self.num_samples}")
        if self.num_samples == 0 and self.pool is None:
            raise InputError(
                "num_samples: 0 draws no answer, and there is no pool to choose among; name it with --pool"
            )
        if self.pool_top < 0:
            raise InputError(f"pool_top: must be 0 (all) or above, got {self.pool_top}")
        if self.sampling.temperature == 0 and self.num_samples > 1:
            raise InputError("sampling.temperature: at 0 all answers of a prompt are the same; raise it, e.g. to 1")
        if self.early_rejection is not None:
            if self.policy.backend_name in ("server", "engine"):
                who = "a server" if self.policy.backend_name == "server" else "an engine"
                raise InputError(f"early_rejection: {who} gives whole answers only; leave one of the two out")
            if self.selection.missing_end_penalty is not None:
                raise InputError(
                    "selection.missing_end_penalty: early_rejection leaves answers unfinished that it gives up, which "
                    "are not to be kept; leave one of the two out"
                )
            if max(self.early_rejection.at) >= (longest := self.sampling.max_new_tokens):
                raise InputError(f"early_rejection.at: must lie below sampling.max_new_tokens, which is {longest}")


def main(config: RejectionSamplingConfig) -> None:
    stage = open_stage(config)
    asked = load_prompts(config.prompts)
    by_id = prompts_by_id(asked, [load_prompts(source) for source in config.earlier_prompts])
    penalty = config.selection.missing_end_penalty
    pool = read_pool(config.pool, top=config.pool_top, missing_end_penalty=penalty, new=config.version)
    if config.num_samples == 0 and not any(row.prompt_id in by_id for row in pool):
        raise InputError(f"pool: {config.pool} holds no answer to these prompts, and num_samples 0 draws none")
    sft_dialogues = load_conversations(config.sft_data) if config.sft_data is not None else []
    params = config.sampling.seeded(config.seed)
    if config.temperature_from is not None:
        params = replace(params, temperature=read_best_temperature(config.temperature_from))
    config.read_mixed_data()  # a bad row is found before anything is sampled
    prompts, no_room = with_room(asked, stage.inputs, params.max_new_tokens, config.too_long)
    renderer_of(PolicySource(checkpoint=config.fine_tune_from))  # a template that does not do is found before hours

    kept = kept_answers(stage, config, prompts, params)
    with training_work(stage, kept) as accelerator:
        # sample K answers to each prompt, and score them and those of earlier versions with the newest reward models
        earlier = [row for row in pool if row.prompt_id in by_id]
        scored = scored_answers(config, prompts, by_id, earlier, params, stage, kept.name, accelerator)

        # keep the best answer of each prompt
        selection = select_as_one(scored.candidates, config.selection)
        dialogues = [by_id[row.prompt_id].answered(row.text, row.finished, row.thoughts) for row in selection.chosen]
        unknown = len(pool) - len(earlier)
        left_out = len(asked) - len(prompts)
        record_round(stage, config, scored, selection, dialogues, no_room, left_out=left_out, unknown=unknown)
        refuse_empty(selection)

        # fine-tune on them
        name = f"rejection sampling {config.version}"
        start = config.fine_tune_from
        finetune_stage(stage, accelerator, start, dialogues, config, name=name, mixed_in=sft_dialogues)


def kept_answers(
    stage: Stage, config: RejectionSamplingConfig, prompts: Sequence[Prompt], params: SamplingParams
) -> Kept:
    """Drawn answers that outlive a kill. With early rejection all that gates a reward decides them too."""
    messages = [prompt.messages for prompt in prompts]
    decisive: dict[str, Any] = {"too_long": config.too_long}
    if config.early_rejection is not None:
        safety = [number for number, prompt in enumerate(prompts) if prompt.domain == "safety"]
        gate = [config.gate.threshold, config.gate.centre]
        decisive["early_rejection"] = [asdict(config.early_rejection), config.helpfulness, config.safety, safety, gate]
        readers = ("helpfulness", "safety", "gate")
        decisive["inputs"] = [n for n in stage.inputs if n.split(".")[0] in readers]
    return kept_samples(messages, config.num_samples, params, stage, "policy", **decisive)


@dataclass(frozen=True)
class ScoredAnswers:
    """What the best are chosen of.

    Args:
        candidates: answers of earlier versions and, behind them, this version's.
        scores: the candidates'.
        drawn: how many are this version's.
        suspicious: sentences on the rewards.
    """

    candidates: list[Completion]
    scores: GatedRewards
    drawn: int
    suspicious: list[str]


def scored_answers(
    config: RejectionSamplingConfig,
    prompts: Sequence[Prompt],
    by_id: Mapping[str, Prompt],
    earlier: Sequence[Completion],
    params: SamplingParams,
    stage: Stage,
    shards: str,
    accelerator: Accelerator,
) -> ScoredAnswers:
    """This version's answers and the earlier ones, scored, if these reward models have not scored those already.
    Sampler and reward models are gone when it returns.

    For early rejection each process asks for scores whenever its own answers are so far: nothing is divided then.

    Args:
        by_id: the prompts of all candidates.
        shards: folder in the stage's in which the drawn answers outlive a kill; their scores do so with the training's
            states.
    """
    reward = config.load_rewards(accelerator if config.early_rejection is None else None)
    reward.refuse_broken(prompts)
    drawn = (
        drawn_answers(config, prompts, params, reward, stage.folder / shards, accelerator) if config.num_samples else []
    )
    name, names_one = scored_by(stage, config, accelerator)
    kept = kept_scores(stage.folder / RESUME, "answers", config.helpfulness, config.safety)
    candidates, scores = rescore([*earlier, *drawn], by_id, reward, accelerator, name, kept, names_one)
    return ScoredAnswers(candidates, scores, len(drawn), reward.suspicious())


def scored_by(stage: Stage, config: RejectionSamplingConfig, accelerator: Accelerator) -> tuple[str, bool]:
    """What scores the answers, and whether nothing else has that name: two checkpoints, by their content."""
    from accelerate.utils import broadcast_object_list

    if not are_checkpoints(config.helpfulness, config.safety):
        return config.reward_name, False
    name = [""]
    if stage.is_main:
        digests = [stage.digests[n] for n in ("helpfulness", "safety") if n in stage.digests]
        how = [*digests, accelerator.mixed_precision, config.too_long]
        name = [f"{config.reward_name} ({', '.join(how)})"]
    broadcast_object_list(name)
    return name[0], True


def drawn_answers(
    config: RejectionSamplingConfig,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    reward: GatedReward,
    shards: Path,
    accelerator: Accelerator,
) -> list[Completion]:
    """K answers to each prompt; where that is asked for, the reward gives up some while they are written."""
    settings = config.early_rejection
    giving_up = None if settings is None else EarlyRejection(settings, reward.of_parts(prompts))
    sampler = open_sampler(config.policy, accelerator.device, early_rejection=giving_up, too_long=config.too_long)
    messages = [prompt.messages for prompt in prompts]
    samples = sample_distributed(sampler, messages, config.num_samples, params, accelerator, shards=shards)
    return completions_of(prompts, samples, config.version, params.temperature)


@on_main_process
def record_round(
    stage: Stage,
    config: RejectionSamplingConfig,
    scored: ScoredAnswers,
    selection: Selection,
    dialogues: Sequence[Conversation],
    no_room: Mapping[str, int],
    *,
    left_out: int,
    unknown: int,
) -> None:
    """Write the round's answers, those chosen and the figures; the closing block says the most important ones.

    Args:
        dialogues: the chosen answers', as they are trained on.
        no_room: prompts that leave too little, by the model whose context it is.
        left_out: prompts that no answer fits behind.
        unknown: answers of the pool to prompts that nobody named.
    """
    scores = scored.scores
    earlier = len(scored.candidates) - scored.drawn
    new = scored.candidates[earlier:]
    given_up = config.early_rejection.at if config.early_rejection else ()
    lengths = [(row.finished, len(row.token_ids)) for row in new]
    written_out = [(finished, n) for finished, n in lengths if finished or n not in given_up]
    by_server = config.policy.server is not None  # which does not say why an answer is cut
    used_safety = None if scores.safety is None else scores.used_safety[earlier:]
    figures: RoundFigures = {
        **selection_figures(new, config.num_samples, used_safety, scored.candidates, selection, given_up),
        "version": config.version,
        "gate_threshold": None if scores.safety is None else config.gate.resolved_threshold(),
        "no_room_share": 0.0 if by_server else no_room_share(written_out, config.sampling.max_new_tokens),
        "too_long": {"prompts": dict(no_room), "scored_cut": int(scores.too_long.sum())},
        "pool": pool_sizes(config.pool),
        "pool_left_out": unknown,
    }
    write_completions(stage.folder / "completions.parquet", new)
    stage.write_rows("selected.jsonl", selected_rows(selection, dialogues))
    stage.write_json("selection.json", figures)
    stage.closing.rows(len(dialogues), {**selection.left_out, "too long a prompt": left_out})
    stage.closing.suspect(scored.suspicious)
    stage.closing.suspect(suspicious_answers(figures["finished_share"], no_room=figures["no_room_share"]))
    stage.closing.suspect(suspicious_choice(figures))
    stage.closing.figures(
        mean_reward=figures.get("mean_reward"),
        selected_mean_reward=figures["selected_mean_reward"],
        mean_length=figures["mean_length"],
        selected_mean_length=figures["selected_mean_length"],
        finished_share=figures["finished_share"],
    )


if __name__ == "__main__":
    run_recipe(main, RejectionSamplingConfig)
