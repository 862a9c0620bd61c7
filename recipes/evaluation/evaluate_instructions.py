"""Whether a policy does what it is told, where a rule can check it: IFEval (Zhou et al. 2023, arXiv 2311.07911).

Prompts ask for an answer of at least so many words, without commas, as JSON, in Swahili, ending with a given phrase.
The policy answers each once, greedily, and rules say of each instruction whether it was followed: strictly, and
loosely, which looks past an introduction, a closing line and asterisks. No judge, and no reward model, takes part.

    python recipes/evaluation/evaluate_instructions.py --config recipes/configs/smollm2_135m/evaluate_instructions.yaml

Writes into the output folder: instruction_evaluation.json (the figures), answers.jsonl (each answer with what the rules
say); prints tables in Markdown. Drawn answers outlive a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf.configuration import run_recipe
from rlhf.data.fields import DataSource
from rlhf.data.suspicion import measured_answers, suspicious_ends
from rlhf.errors import InputError
from rlhf.evaluation.instructions.ifeval import InstructedPrompt, Verdicts, instruction_figures, judge, read_prompts
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.pages.instructions import markdown_tables
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.shards import kept_samples
from rlhf.sampling.source import AnsweringPolicy
from rlhf.stage import KeepingConfig, Stage, on_main_process, open_stage
from rlhf.training.work import launched_work


@dataclass(frozen=True, kw_only=True)
class EvaluateInstructionsConfig(RoomConfig, KeepingConfig):
    """IFEval of one policy.

    Args:
        policy: which is evaluated (docs/policies.md).
        prompts: rows of the published form: key, prompt, instruction_id_list, kwargs (file or hub name).
        name: of the policy, in the tables.
        questions: the first prompts, this many; null: all.
        sampling: how answers are drawn.
        seed: added to sampling.seed.
    """

    policy: AnsweringPolicy
    prompts: DataSource
    name: str = "policy"
    questions: int | None = None
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0, max_new_tokens=512))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.questions is not None and self.questions < 1:
            raise InputError(f"questions: must be at least 1, got {self.questions}")


def main(config: EvaluateInstructionsConfig) -> None:
    stage = open_stage(config)
    read = read_prompts(config.prompts)[: config.questions]
    prompts = answerable(stage, read, config.sampling.max_new_tokens)
    messages = [prompt.messages for prompt in prompts]
    params = config.sampling.seeded(config.seed)
    kept = kept_samples(messages, 1, params, stage, "policy", too_long=config.too_long)
    with launched_work(stage, kept) as accelerator:
        sampler = open_sampler(config.policy, accelerator.device, too_long=config.too_long)
        drawn = sample_distributed(sampler, messages, 1, params, accelerator, shards=stage.folder / kept.name)
        answers = [samples[0] for samples in drawn]
        verdicts = [judge(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
        record_instructions(stage, config.name, prompts, answers, verdicts)


@on_main_process
def record_instructions(
    stage: Stage,
    name: str,
    prompts: Sequence[InstructedPrompt],
    answers: Sequence[Sample],
    verdicts: Sequence[Verdicts],
) -> None:
    """Write answers and figures, and show the tables."""
    figures = instruction_figures(name, prompts, verdicts)
    stage.write_rows(
        "answers.jsonl",
        (
            {
                "id": prompt.id,
                "prompt": prompt.text,
                "answer": answer.text,
                "finished": answer.finished,
                "instructions": [instruction for instruction, _ in prompt.instructions],
                "followed": list(verdict.strict),
                "followed_loosely": list(verdict.loose),
            }
            for prompt, answer, verdict in zip(prompts, answers, verdicts, strict=True)
        ),
    )
    stage.write_json("instruction_evaluation.json", figures, shown=markdown_tables(figures))
    stage.closing.figures(
        prompts_followed=figures["prompt_strict"]["share"], instructions_followed=figures["instruction_strict"]["share"]
    )
    stage.closing.suspect(suspicious_ends((answer.finished for answer in answers), whose=measured_answers(name)))


if __name__ == "__main__":
    run_recipe(main, EvaluateInstructionsConfig)
