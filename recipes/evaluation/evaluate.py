"""What a version is worth: its answers to held-out prompts, judged (Llama 2 paper, sections 3.4 and 4.3).

The policy answers every test prompt. The judges are a gold scorer, where the truth is known, both reward models with
the safety gate, and a referee reward model. The answers are set against SFT's answers to the same prompts, judged by
the same judges; and SFT's log-probabilities say how far the policy has moved. Length is reported beside reward, because
much of a gain in reward is often length. Judge models behind OpenAI-compatible servers compare the answers with SFT's,
or with those of any served model, in both orders; what each and their majority say stands beside, by helpfulness and
by safety.

    python recipes/evaluation/evaluate.py --config recipes/configs/embedded/evaluate.yaml

Writes into the output folder: answers.jsonl (a row an answer), evaluation.json (the figures;
`rlhf.evaluation.policies.versions` says what each one averages over). Answers and judge models' judgements outlive a
kill, and a judge that breaks down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlhf.configuration import run_recipe
from rlhf.conversation import Renderer
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Prompt
from rlhf.data.suspicion import measured_answers, no_room_share, suspicious_answers, suspicious_judge
from rlhf.errors import InputError
from rlhf.evaluation.answers import (
    Answer,
    answers_of,
    evaluated_name,
    read_answers,
    require_same_prompts,
    write_answers,
)
from rlhf.evaluation.judging import judgements, scored_alike, with_gold, with_referee, with_rewards
from rlhf.evaluation.policies.divergence import answer_kls, answer_logprobs, require_same_tokenizer
from rlhf.evaluation.policies.judge_model import Judged, judge_figures, judged_outcomes
from rlhf.evaluation.policies.versions import VersionFigures, against, figure_lines, version_figures
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.models.policy import load_tokenizer
from rlhf.rewards.config import GateConfig
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.loading import load_reward
from rlhf.rewards.pair_judge import judge_counts
from rlhf.rewards.specs import Reward
from rlhf.sampling.chat import ServerConfig, require_panel
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import load_weights, open_sampler
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.sampling.room import prompts_of_at_most, with_room
from rlhf.sampling.shards import FOLDER, kept_samples
from rlhf.sampling.source import AnsweringPolicy, PolicySource, ScoringPolicy, TokenizedPolicy, named
from rlhf.stage import ExistingPath, InputPath, KeepingConfig, Kept, Stage, on_main_process, open_stage
from rlhf.training.work import launched_work

if TYPE_CHECKING:
    from accelerate import Accelerator

JUDGED = "judged{}"  # folder of a judge's judgements, by its place


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RoomConfig, KeepingConfig):
    """Evaluation of one version.

    Args:
        name: of the version, in the report.
        policy: which is evaluated (docs/policies.md).
        prompts: held-out prompts (file or hub name).
        baseline: the SFT policy, with the same tokenizer: the KL is measured from it, not of a policy on a server.
        baseline_evaluation: folder of SFT's own evaluation on the same prompts: its answers are the opponent.
        helpfulness: reward-model folder, `package.module:attribute` of your own reward function, or the YAML file of an
            ensemble of them.
        safety: the same for safety; null: helpfulness alone is the reward, and there is no gate.
        gate: when the safety score counts in place of the helpfulness score.
        referee: the same for a referee that no training has seen.
        scorer: `package.module:Class` of a gold scorer, called with `world`.
        world: the file or folder that the scorer reads.
        judges: servers of judge models that compare the answers with the opponent's; of several the majority decides,
            and each one's figures stand beside.
        judge_max_new_tokens: longest judgement.
        opponent: the policy that the judges compare with; without one, SFT's answers (baseline_evaluation).
        sampling: how answers are drawn. The KL is between both models at this temperature; it is measured where that is
            above 0 and nothing is cut off or penalised.
        samples_per_prompt: answers to each prompt.
        max_prompt_tokens: leave out longer prompts; how many is said.
        seed: added to sampling.seed; the same for every version, so that luck is shared.
    """

    name: str
    policy: TokenizedPolicy
    prompts: DataSource
    baseline: ScoringPolicy | None = None
    baseline_evaluation: Annotated[Path, ExistingPath("answers.jsonl")] | None = None
    helpfulness: Reward | None = None
    safety: Reward | None = None
    gate: GateConfig = field(default_factory=GateConfig)
    referee: Reward | None = None
    scorer: str | None = None
    world: InputPath | None = None
    judges: tuple[ServerConfig, ...] = ()
    judge_max_new_tokens: int = 1024
    opponent: AnsweringPolicy | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    samples_per_prompt: int = 1
    max_prompt_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("name: must not be empty; name the version, e.g. --name v1")
        if self.samples_per_prompt < 1:
            raise InputError(f"samples_per_prompt: must be at least 1, got {self.samples_per_prompt}")
        if self.safety is not None and self.helpfulness is None:
            raise InputError("safety: the gate needs a helpfulness reward beside it; name one with --helpfulness")
        self.gate.require_safety(self.safety)
        if (self.scorer is None) != (self.world is None):
            raise InputError("scorer, world: a gold scorer needs its world; name both or neither")
        if self.judge_max_new_tokens < 1:
            raise InputError(f"judge_max_new_tokens: must be at least 1, got {self.judge_max_new_tokens}")
        require_panel("judges", self.judges)
        if self.opponent is not None and not self.judges:
            judge = "--judges '{url: http://localhost:8000/v1, model: NAME}'"
            raise InputError(f"opponent: nobody compares with its answers; name a judge, e.g. {judge}")
        object.__setattr__(self, "baseline", named(self.baseline))

    @property
    def measures_kl(self) -> bool:
        """Whether the answers' log-ratios estimate the KL from SFT at the temperature that they are drawn at."""
        shapes = replace(self.sampling, temperature=1.0, max_new_tokens=1, seed=0)
        whole = self.sampling.temperature > 0 and shapes == SamplingParams(max_new_tokens=1)
        return self.baseline is not None and whole and self.policy.server is None


def main(config: EvaluateConfig) -> None:
    stage = open_stage(config)
    scorer = load_scorer(config.scorer, config.world) if config.scorer and config.world else None
    there = load_prompts(config.prompts)
    renderer = prompt_renderer(config)
    short = prompts_of_at_most("prompts", config.prompts, there, renderer, config.max_prompt_tokens)
    prompts, no_room = with_room(short, stage.inputs, config.sampling.max_new_tokens, config.too_long)
    opponents = read_answers(stage.inputs["baseline_evaluation"]) if config.baseline_evaluation else []
    if config.baseline_evaluation is not None:
        require_same_prompts(opponents, prompts, config.baseline_evaluation)
    with launched_work(stage, *kept_work(stage, config, prompts)) as accelerator:
        answers = drawn_answers(config, prompts, renderer, accelerator, stage.folder)

        # the judges: both reward models with the gate, a referee, a gold scorer
        gate = None
        if config.helpfulness is not None:
            options: dict[str, Any] = {"too_long": config.too_long, "accelerator": accelerator}
            reward = GatedReward.load(config.helpfulness, config.safety, config.gate, **options)
            gate = None if config.safety is None else reward.gate
            answers = with_rewards(answers, reward, accelerator)
            if (other := config.baseline_evaluation) and not stage.agreed(partial(scored_alike, stage, config, other)):
                opponents = with_rewards(opponents, reward, accelerator)
            stage.closing.suspect(reward.suspicious())
        if config.referee:
            answers = with_referee(answers, load_reward(config.referee, accelerator=accelerator), accelerator)
        if scorer is not None:
            answers, opponents = with_gold(answers, scorer), with_gold(opponents, scorer)

        # against SFT's answers by what they say, and by judge models
        extras, figures = against(answers, opponents), version_figures(config.name, answers, opponents, gate)
        if config.judges and (config.opponent is not None or opponents):
            judged, opponent = compared(config, prompts, answers, opponents, accelerator, stage.folder)
            figures = {**figures, **judge_figures(answers, judged, opponent)}
            extras = [{**extra, **own} for extra, own in zip(extras, judged.rows(), strict=True)]
            for name, opinions in judged.opinions.items():
                stage.closing.suspect(suspicious_judge(name, judge_counts(opinions)))
        figures["too_long"] = {"prompts": no_room}
        record_evaluation(stage, config, answers, extras, figures, left_out=len(there) - len(prompts))


def prompt_renderer(config: EvaluateConfig) -> Renderer:
    """Renders prompts for the policy as `too_long` says. InputError where SFT's tokenizer is another one."""
    tokenizer = load_tokenizer(config.policy.folder)
    if config.baseline is not None:
        require_same_tokenizer(tokenizer, config.baseline.folder)
    return config.policy.context.prompt_renderer(tokenizer, config.sampling.max_new_tokens, config.too_long)


def kept_work(stage: Stage, config: EvaluateConfig, prompts: Sequence[Prompt]) -> list[Kept]:
    """The folders of what is drawn, and of what each judge says of it, taken over where they would be the same."""
    messages, params = [prompt.messages for prompt in prompts], config.sampling.seeded(config.seed)
    drawn = kept_samples(
        messages, config.samples_per_prompt, params, stage, "policy", "opponent", too_long=config.too_long
    )
    inputs = [*drawn.inputs, *(name for name in stage.inputs if name == "baseline_evaluation")]
    length = {"judge_max_new_tokens": config.judge_max_new_tokens}
    judged = [
        replace(
            drawn,
            name=JUDGED.format(number),
            what="judgements",
            inputs=inputs,
            values={**drawn.values, f"judges.{number}.model": judge.model, **length},
        )
        for number, judge in enumerate(config.judges)
    ]
    return [drawn, *judged]


def drawn_answers(
    config: EvaluateConfig, prompts: Sequence[Prompt], renderer: Renderer, accelerator: Accelerator, folder: Path
) -> list[Answer]:
    """The policy's answers, each with its KL from SFT where that is measured. The weights are loaded one by one.

    folder: the stage's.
    """
    by_engine = config.policy.engine is not None  # which holds them too, until all is drawn
    policy = load_weights(config.policy, accelerator.device) if config.measures_kl and not by_engine else None
    options = {"too_long": config.too_long, "renderer": renderer, "model": policy}
    drawn = sampled(config, config.policy, prompts, accelerator, folder / FOLDER / "policy", **options)
    if config.measures_kl and by_engine:
        policy = load_weights(config.policy, accelerator.device)
    answers = answers_of(prompts, drawn)
    if config.baseline is None or policy is None:
        return answers
    starts = renderer.prompts([prompt.messages for prompt in prompts])
    rows = [(start, s.token_ids) for start, samples in zip(starts, drawn, strict=True) for s in samples]
    drawn_at = (rows, renderer.pad_token_id, accelerator, config.sampling.temperature)
    own = answer_logprobs(policy, *drawn_at)
    del policy, options
    baseline = load_weights(config.baseline, accelerator.device)
    kls = answer_kls(own, answer_logprobs(baseline, *drawn_at))
    return [replace(a, kl=k1, kl_k3=k3) for a, (k1, k3) in zip(answers, kls, strict=True)]


def sampled(
    config: EvaluateConfig,
    policy: PolicySource,
    prompts: Sequence[Prompt],
    accelerator: Accelerator,
    shards: Path,
    **options: Any,
) -> list[list[Sample]]:
    """A policy's answers to the prompts, kept in `shards`; `options` are those of `open_sampler`."""
    sampler = open_sampler(policy, accelerator.device, **options)
    messages = [prompt.messages for prompt in prompts]
    params = config.sampling.seeded(config.seed)
    return sample_distributed(sampler, messages, config.samples_per_prompt, params, accelerator, shards=shards)


def compared(
    config: EvaluateConfig,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    opponents: Sequence[Answer],
    accelerator: Accelerator,
    folder: Path,
) -> tuple[Judged, str]:
    """What the judges say of the answers against the opponent's, or SFT's, and the opponent's name."""
    opponent = "sft" if config.baseline_evaluation is None else evaluated_name(config.baseline_evaluation)
    if config.opponent is not None:
        options = {"too_long": config.too_long, "field": "opponent"}
        theirs = sampled(config, config.opponent, prompts, accelerator, folder / FOLDER / "opponent", **options)
        opponents = answers_of(prompts, theirs)
        opponent = config.opponent.name
    params = SamplingParams(temperature=0.0, max_new_tokens=config.judge_max_new_tokens)
    judges = {
        judge.model: partial(judgements, judge, f"judges.{number}", params, accelerator, folder / JUDGED.format(number))
        for number, judge in enumerate(config.judges)
    }
    return judged_outcomes(answers, opponents, judges), opponent


@on_main_process
def record_evaluation(
    stage: Stage,
    config: EvaluateConfig,
    answers: Sequence[Answer],
    extras: Sequence[Mapping[str, Any]],
    figures: VersionFigures,
    *,
    left_out: int,
) -> None:
    """Write answers.jsonl (`extras`: what a row has besides) and evaluation.json; the closing block says the rest.

    left_out: prompts that are too long.
    """
    write_answers(stage.folder / "answers.jsonl", answers, extras)
    stage.write_json("evaluation.json", figures)
    stage.closing.rows(len(answers), {"too long a prompt": left_out})
    few: dict[str, float | None] = {
        "win_rate_vs_sft": figures["win_rate_vs_sft"],
        "violation_rate": figures["violation_rate"],
        "mean_length": figures["mean_length"],
        "kl_from_sft": figures["kl_from_sft"],
    }
    stage.closing.figures(**{name: value for name, value in few.items() if value is not None})
    stage.closing.show(figure_lines(figures))
    ended = no_room_share([(a.finished, a.length) for a in answers], config.sampling.max_new_tokens)
    finished = sum(a.finished for a in answers) / len(answers)
    stage.closing.suspect(suspicious_answers(finished, no_room=ended, whose=measured_answers(config.name)))


if __name__ == "__main__":
    run_recipe(main, EvaluateConfig)
