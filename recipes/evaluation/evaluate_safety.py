"""How safe a policy is: violations, and refusals of what it should answer (Llama 2 paper, sections 4.1 and 4.2.3).

The policy answers unsafe prompts, borderline ones (they only look unsafe) and ordinary ones. Judges stand side by side:
a refusal detector, a safety reward model, a checker of your own, and a gold scorer where the truth is known. Unsafe and
borderline prompts are also asked after other dialogues, since a policy that refuses at once may give in later.

    python recipes/evaluation/evaluate_safety.py --config recipes/configs/embedded/evaluate_safety.yaml

Writes into the output folder: answers.jsonl (a row an answer), safety_evaluation.json (the figures;
`rlhf.evaluation.safety.figures` says what each one averages over); prints tables in Markdown. Drawn answers outlive a
kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rlhf.configuration import run_recipe
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_conversations
from rlhf.data.suspicion import measured_answers, suspicious_ends
from rlhf.errors import InputError
from rlhf.evaluation.answers import write_answers
from rlhf.evaluation.safety.fields import Refusals
from rlhf.evaluation.safety.figures import (
    JudgedAnswer,
    SafetyPrompt,
    after_dialogues,
    load_safety_prompts,
    safety_figures,
)
from rlhf.evaluation.safety.judging import SafetyJudges, answer_and_judge, judged_rows, load_judges
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.pages.safety import markdown_tables
from rlhf.rewards.specs import Reward
from rlhf.rewards.suspicion import suspicious_scoring
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.shards import kept_samples
from rlhf.sampling.source import AnsweringPolicy
from rlhf.stage import InputPath, KeepingConfig, Stage, on_main_process, open_stage
from rlhf.training.work import launched_work


@dataclass(frozen=True, kw_only=True)
class EvaluateSafetyConfig(RoomConfig, KeepingConfig):
    """Safety evaluation of one policy.

    Args:
        policy: which is evaluated (docs/policies.md).
        prompts: name -> file or hub name. What kind a prompt is (unsafe, borderline, ordinary) says the row's field
            kind, XSTest's label, `kinds` below, or the gold scorer.
        name: of the policy, in the tables.
        kinds: name of a source of prompts -> the kind of all of them.
        dialogues: dialogues that end with an answer (file or hub name); each unsafe and borderline prompt is also
            asked after one of them.
        refusals: `rules`, the detector.json of recipes/evaluation/refusal_detector.py, or `package.module:attribute`, a
            function of conversations that gives one bool each: it refuses.
        safety: reward-model folder, or `package.module:attribute` of your own reward function.
        helpfulness: the same for helpfulness; scores only, it decides nothing.
        threshold: a safety score, after the sigmoid, below it is a violation.
        checker: `package.module:attribute`, a function of conversations that gives one bool each: it is a violation.
        scorer: `package.module:Class` of a gold scorer, called with `world`.
        world: the file or folder that the scorer reads.
        sampling: how answers are drawn.
        samples_per_prompt: answers to each prompt.
        seed: added to sampling.seed; also draws the dialogues.
    """

    policy: AnsweringPolicy
    prompts: dict[str, DataSource]
    name: str = "policy"
    kinds: dict[str, str] = field(default_factory=dict)
    dialogues: DataSource | None = None
    refusals: Refusals = "rules"
    safety: Reward | None = None
    helpfulness: Reward | None = None
    threshold: float = 0.5
    checker: str | None = None
    scorer: str | None = None
    world: InputPath | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    samples_per_prompt: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("prompts: must name at least one source, e.g. --prompts.xstest FILE")
        for name, kind in self.kinds.items():
            if name not in self.prompts:
                raise InputError(f"kinds: {name} is none of the prompts' sources ({', '.join(self.prompts)})")
            if kind not in ("unsafe", "borderline", "ordinary"):
                raise InputError(f"kinds: {name} must be unsafe, borderline or ordinary, got {kind!r}")
        if not 0 < self.threshold < 1:
            raise InputError(f"threshold: must lie between 0 and 1, got {self.threshold}")
        if self.samples_per_prompt < 1:
            raise InputError(f"samples_per_prompt: must be at least 1, got {self.samples_per_prompt}")
        if (self.scorer is None) != (self.world is None):
            raise InputError("scorer, world: a gold scorer needs its world; name both or neither")


def main(config: EvaluateSafetyConfig) -> None:
    stage = open_stage(config)
    scorer = load_scorer(config.scorer, config.world) if config.scorer and config.world else None
    prompts = asked(config, SafetyJudges(scorer=scorer))
    prompts = answerable(stage, prompts, config.sampling.max_new_tokens, messages=lambda one: one.prompt.messages)
    messages, number = [one.prompt.messages for one in prompts], config.samples_per_prompt
    params = config.sampling.seeded(config.seed)
    kept = kept_samples(messages, number, params, stage, "policy", too_long=config.too_long)
    with launched_work(stage, kept) as accelerator:
        named = (config.refusals, config.safety, config.helpfulness, config.checker)
        judges = load_judges(*named, None, None, accelerator, config.too_long)
        judges = replace(judges, scorer=scorer)
        sampler = open_sampler(config.policy, accelerator.device, too_long=config.too_long)
        shards = stage.folder / kept.name
        judged = answer_and_judge(sampler, prompts, judges, params, number, accelerator, shards=shards)
        record_safety(stage, config, judged)
        stage.closing.suspect(suspicious_scoring(safety=judges.safety, helpfulness=judges.helpfulness))


def asked(config: EvaluateSafetyConfig, judges: SafetyJudges) -> list[SafetyPrompt]:
    """All sources' prompts, and behind them the risky ones after other dialogues, where there are some."""
    prompts = [
        prompt
        for name, source in config.prompts.items()
        for prompt in load_safety_prompts(name, source, config.kinds.get(name), judges.kind_of)
    ]
    if config.dialogues is None:
        return prompts
    risky = [prompt for prompt in prompts if prompt.kind != "ordinary"]
    return [*prompts, *after_dialogues(risky, load_conversations(config.dialogues), config.seed)]


@on_main_process
def record_safety(stage: Stage, config: EvaluateSafetyConfig, judged: Sequence[JudgedAnswer]) -> None:
    """Write answers and figures, and show the tables."""
    figures = safety_figures(config.name, judged, config.threshold)
    write_answers(stage.folder / "answers.jsonl", [one.answer for one in judged], judged_rows(judged))
    stage.write_json("safety_evaluation.json", figures, shown=markdown_tables(figures))
    stage.closing.rows(len(judged))
    stage.closing.suspect(suspicious_ends((one.answer.finished for one in judged), whose=measured_answers(config.name)))


if __name__ == "__main__":
    run_recipe(main, EvaluateSafetyConfig)
