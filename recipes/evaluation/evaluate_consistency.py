"""How long policies obey an instruction that was given in the first turn (Llama 2 paper, section 3.3, table 30).

Each policy answers the same dialogues, turn after turn, its own answers being the history; a checker says of each
answer whether it obeys. Instructions that training saw and others stand apart. Also: what everyday answers are worth,
beside the first policy's, and the attention picture (figure 10) of one dialogue for every policy.

    python recipes/evaluation/evaluate_consistency.py --config recipes/configs/ghost_attention/evaluate_consistency.yaml

Writes into the output folder: consistency.json (all figures), trials.jsonl (all dialogues), everyday.jsonl,
consistency.svg, attention.svg; prints the tables in Markdown.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation
from rlhf.data.loading import load_conversations, load_prompts
from rlhf.data.rows import Prompt
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer, answers_of
from rlhf.evaluation.instructions.checkers import load_checker
from rlhf.evaluation.instructions.consistency import (
    Consistency,
    Trial,
    consistency_figures,
    everyday_figures,
    obedience,
)
from rlhf.evaluation.judging import with_gold
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.pages.consistency import (
    attention_table,
    consistency_table,
    everyday_table,
    plot_attention,
    plot_consistency,
)
from rlhf.sampling.chat import ServerConfig
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import load_weights, open_sampler, renderer_of
from rlhf.sampling.protocol import Sampler, SamplingParams
from rlhf.sampling.room import Room, answerable
from rlhf.sampling.server import ServerSampler
from rlhf.sampling.source import PolicyCheck, PolicySource
from rlhf.stage import InputPath, Stage, StageConfig, on_main_process, open_stage
from rlhf.stage.fields import ExistingPath, InEachRun, in_run, inputs_in_run
from rlhf.synthesis.asking import make_ask
from rlhf.synthesis.ghost_attention import Fits, answer_dialogues, training_context
from rlhf.synthesis.instructions import Instruction, draw_instructions, read_constraints
from rlhf.training.work import launched_work

if TYPE_CHECKING:
    from accelerate import Accelerator

Everyday = dict[str, dict[str, list[Answer]]]
"""Policy -> run -> its answers to everyday prompts, judged."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConsistencyConfig(RoomConfig, StageConfig):
    """What to measure.

    In paths {run} stands for each run folder in turn.

    Args:
        policies: name -> policy (docs/policies.md); the first one is what the others are compared with.
        dialogues: held-out dialogues, as long as the longest turn to measure; only their users' messages are read.
        instructions: file of the constraints that training saw.
        unseen_instructions: file of others; null: none are measured.
        runs: run folders; the figures are over all of them.
        checker: "pattern" (that of the constraints), "judge", or the import path of your own.
        judge: server of the judge model, for the checker "judge".
        turns: after which the share that obeys is given.
        num_dialogues: for each policy, run and group of instructions.
        most_constraints: an instruction combines one to this many constraints of different kinds.
        short_share: share of the instructions that are shortened.
        sampling: how answers are drawn.
        everyday_prompts: file of prompts without instruction that the policies answer too; null: none.
        scorer: import path of a gold scorer that judges these answers.
        world: the scorer's world.
        attention_turns: turns of the dialogue whose attention is drawn; 0: no picture.
        bin_size: neighbouring tokens that are one point of the picture.
        seed: of every draw; added to sampling.seed.
    """

    policies: dict[str, Annotated[PolicySource, InEachRun(PolicyCheck("tokens"))]]
    dialogues: Annotated[str, InEachRun(ExistingPath())]
    instructions: InputPath
    unseen_instructions: InputPath | None = None
    runs: tuple[str, ...] = (".",)
    checker: str = "pattern"
    judge: ServerConfig | None = None
    turns: tuple[int, ...] = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)
    num_dialogues: int = 50
    most_constraints: int = 3
    short_share: float = 0.5
    sampling: SamplingParams = field(default_factory=SamplingParams)
    everyday_prompts: Annotated[str, InEachRun(ExistingPath())] | None = None
    scorer: str | None = None
    world: Annotated[str, InEachRun(ExistingPath())] | None = None
    attention_turns: int = 6
    bin_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("policies", "runs", "turns"):
            if not getattr(self, name):
                raise InputError(f"{name}: must name at least one")
        for name in ("num_dialogues", "most_constraints", "bin_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if min(self.turns) < 1:
            raise InputError(f"turns: must be 1 or above, got {min(self.turns)}")
        if len({bool(v) for v in (self.everyday_prompts, self.scorer, self.world)}) > 1:
            raise InputError("everyday_prompts, scorer, world: name all three or none")
        if self.attention_turns and any(policy.server is not None for policy in self.policies.values()):
            raise InputError("attention_turns: a server does not show a policy's attention; set it to 0")


def main(config: EvaluateConsistencyConfig) -> None:
    stage = open_stage(config)
    policies = [(name, run, in_run(source, run)) for name, source in config.policies.items() for run in config.runs]
    groups = {"trained": read_constraints(config.instructions)}
    if config.unseen_instructions is not None:
        groups["unseen"] = read_constraints(config.unseen_instructions)

    drawn = {
        group: draw_instructions(
            constraints,
            config.num_dialogues,
            random.Random(f"{group}/{config.seed}"),
            most=config.most_constraints,
            short_share=config.short_share,
        )
        for group, constraints in groups.items()
    }
    ordinary = {run: everyday_prompts(stage, config, run) for run in config.runs}
    with launched_work(stage) as accelerator:
        trials: list[Trial] = []
        everyday: Everyday = {}
        for name, run, source in policies:
            renderer = renderer_of(source)
            sampler = open_sampler(
                source, accelerator.device, too_long=config.too_long, renderer=renderer, field=f"policies.{name}"
            )
            for group, instructions in drawn.items():
                judge = None if config.judge is None else ServerSampler(config.judge, who="judge")
                checker = load_checker(config.checker, groups[group], judge)
                fits = Room(source.context, renderer, config.sampling.max_new_tokens, config.too_long)
                trials += hold(name, run, group, instructions, sampler, fits, checker, config, accelerator)
            if config.everyday_prompts is not None:
                everyday.setdefault(name, {})[run] = answer_everyday(config, run, ordinary[run], sampler, accelerator)
        record_trials(stage, config, trials, everyday)


@on_main_process
def record_trials(stage: Stage, config: EvaluateConsistencyConfig, trials: Sequence[Trial], everyday: Everyday) -> None:
    """Write trials, everyday answers, figures and pictures, and show the tables."""
    rows = consistency_figures(trials, config.turns)
    by_kind = consistency_figures([replace(t, group=f"{t.group}: {t.kind}") for t in trials], config.turns)
    others = everyday_figures(everyday) if everyday else []
    stage.write_rows("trials.jsonl", trials)
    plot_consistency(rows, stage.folder / "consistency.svg")
    print(f"{consistency_table([*rows, *by_kind])}\n")
    if others:
        stage.write_rows("everyday.jsonl", everyday_rows(everyday))
        print(f"{everyday_table(others)}\n")
    looked = picture(config, trials, stage.folder) if config.attention_turns else {}
    figures: Consistency = {
        "consistency": rows,
        "by_kind": by_kind,
        "everyday": others,
        "attention_to_instruction": looked,
    }
    stage.write_json("consistency.json", figures)
    without_room = sum(not trial.obeyed for trial in trials)
    stage.closing.rows(len(trials) - without_room, {"no room in the context": without_room})
    ended = [trial.finished for trial in trials if trial.obeyed]
    ended += [answer.finished for own in everyday.values() for some in own.values() for answer in some]
    stage.closing.suspect(suspicious_ends(ended))


def test_dialogues(config: EvaluateConsistencyConfig, run: str) -> list[Conversation]:
    """num_dialogues of a run's dialogues (again from the start where there are fewer), cut after the last turn."""
    found = load_conversations(in_run(config.dialogues, run))
    chosen = [found[i % len(found)] for i in range(config.num_dialogues)]
    system = [[m for m in d[:1] if m["role"] == "system"] for d in chosen]
    return [[*s, *d[len(s) : len(s) + 2 * max(config.turns)]] for s, d in zip(system, chosen, strict=True)]


def hold(
    name: str,
    run: str,
    group: str,
    instructions: Sequence[Instruction],
    sampler: Sampler,
    fits: Fits,
    checker: Any,
    config: EvaluateConsistencyConfig,
    accelerator: Accelerator,
) -> list[Trial]:
    """Let the policy hold the dialogues, the instruction in the first turn only, and check its answers."""
    params = config.sampling.seeded(config.seed)
    ask = make_ask(sampler, params, accelerator)
    texts = [instruction.text for instruction in instructions]
    whole = config.too_long == "skip"
    answered = answer_dialogues(test_dialogues(config, run), texts, training_context, ask, fits, whole=whole)
    obeyed = obedience(checker, instructions, [a.messages for a in answered])
    return [
        Trial(name, run, group, instruction.kind, instruction.text, a.messages, own, a.finished)
        for instruction, a, own in zip(instructions, answered, obeyed, strict=True)
    ]


def everyday_prompts(stage: Stage, config: EvaluateConsistencyConfig, run: str) -> list[Prompt]:
    """A run's prompts without instruction, by `too_long`; none where none are asked for."""
    if config.everyday_prompts is None:
        return []
    prompts = load_prompts(in_run(config.everyday_prompts, run))
    readers = inputs_in_run(stage.inputs, config.runs.index(run))
    return answerable(stage, prompts, config.sampling.max_new_tokens, inputs=readers)


def answer_everyday(
    config: EvaluateConsistencyConfig, run: str, prompts: Sequence[Prompt], sampler: Sampler, accelerator: Accelerator
) -> list[Answer]:
    """The policy's answers to a run's everyday prompts, judged by the scorer."""
    assert config.scorer is not None and config.world is not None
    params = config.sampling.seeded(config.seed)
    drawn = sample_distributed(sampler, [p.messages for p in prompts], 1, params, accelerator)
    return with_gold(answers_of(prompts, drawn), load_scorer(config.scorer, Path(in_run(config.world, run))))


def everyday_rows(everyday: Everyday) -> Iterator[dict[str, Any]]:
    """The judged answers with the policy and the run that they are from."""
    for policy, runs in everyday.items():
        for run, answers in runs.items():
            for answer in answers:
                yield {"policy": policy, "run": run, **asdict(answer)}


def picture(config: EvaluateConsistencyConfig, trials: Sequence[Trial], folder: Path) -> dict[str, list[float]]:
    """Draw each policy's attention on ONE dialogue, the last policy's first; return its attention to the instruction.

    By policy: for each answer the mean over its tokens of the largest attention to any token of the instruction.
    Nothing where the context held none of the dialogues.
    """
    import torch

    from rlhf.evaluation.instructions.attention import answer_spans, attention_to, binned, largest_attention, text_span

    run, last = config.runs[0], list(config.policies)[-1]
    held = (t for t in trials if (t.policy, t.run, t.group) == (last, run, "trained") and t.messages)
    trial = next(held, None)
    if trial is None:
        return {}
    messages = training_context(trial.messages, trial.instruction)[: 2 * config.attention_turns]
    maps, looked = {}, {}
    for name, source in ((name, in_run(policy, run)) for name, policy in config.policies.items()):
        renderer = renderer_of(source)
        dialogue = renderer.dialogue(messages)
        attention = largest_attention(load_weights(source, torch.device("cpu")), dialogue.input_ids)
        told = text_span(renderer.tokenizer, dialogue.input_ids, trial.instruction)
        looked[name] = [attention_to(attention, span, told) for span in answer_spans(dialogue.loss_mask)]
        maps[name] = binned(attention, config.bin_size).numpy()
    plot_attention(maps, config.bin_size, folder / "attention.svg")
    print(f"{attention_table(looked)}\n")
    return looked


if __name__ == "__main__":
    run_recipe(main, EvaluateConsistencyConfig)
