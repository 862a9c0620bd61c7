"""Ghost Attention: an instruction given once is obeyed in every later turn (Llama 2 paper, section 3.3).

A model forgets after a few turns what it was told in the first. So take dialogues and an instruction, join it to EVERY
user message, and let the newest policy answer; then fine-tune on these answers with the instruction in the FIRST turn
only, and the loss on the last answer alone. Nothing about attention is changed.

    python recipes/ghost_attention.py --config recipes/configs/ghost_attention/ghost_attention.yaml
    python recipes/ghost_attention.py --config recipes/configs/ghost_attention/ghost_attention.yaml --dry_run 3

Writes into the output folder: checkpoint/, rows.jsonl (the dialogues it trained on, each with its instruction),
ghost_attention.json (counts), metrics.jsonl. With --dry_run N it prints N rows, coloured, and writes nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation, Renderer, says_nothing
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_conversations
from rlhf.data.suspicion import suspicious_selection
from rlhf.errors import InputError, notice
from rlhf.evaluation.instructions.checkers import Checker, load_checker
from rlhf.finetuning.config import FinetuningConfig, MixedFinetuneConfig
from rlhf.finetuning.stage import finetune_stage
from rlhf.models.checkpoint.context import Context, RoomConfig
from rlhf.sampling.opening import open_sampler, renderer_of
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import Room
from rlhf.sampling.shards import kept_samples
from rlhf.sampling.source import TrainedPolicy
from rlhf.stage import InputPath, Kept, Stage, inputs_of, open_stage
from rlhf.synthesis.asking import make_ask
from rlhf.synthesis.ghost_attention import (
    Answered,
    Ask,
    answer_dialogues,
    answer_last_turns,
    sampling_context,
    training_context,
    turns_of,
)
from rlhf.synthesis.instructions import (
    LIST_QUESTIONS,
    Constraint,
    Instruction,
    constraints_from_lists,
    draw_instructions,
    read_constraints,
)
from rlhf.synthesis.showing import coloured
from rlhf.training.accelerator import make_accelerator
from rlhf.training.work import training_work

if TYPE_CHECKING:
    from accelerate import Accelerator

LIST_KEYS = 1_000_000_000  # keys of the draws of the lists, beyond those of the dialogues


@dataclass(frozen=True, kw_only=True)
class GhostAttentionConfig(RoomConfig, MixedFinetuneConfig):
    """Ghost Attention.

    Args:
        policy: which answers, the newest (docs/policies.md), and whose checkpoint is then fine-tuned.
        dialogues: dialogues of any kind (file or hub name); of one turn they are left out.
        instructions: file of constraints, rows {kind, value[, text, short, pattern]}; null: the policy writes lists of
            hobbies, languages and public figures.
        list_samples: how often it is asked for each list.
        most_constraints: an instruction combines one to this many constraints of different kinds.
        short_share: share of the instructions that are shortened ("Figure: Napoleon.").
        history: "sampled": the policy gives all answers of a dialogue, one after the other; "given": only the last one,
            the earlier ones stay as they are in the data, whether they obey or not.
        checker: keep only rows whose last answer obeys: "pattern" (that of the constraints) or the import path of your
            own rule; "auto": the patterns where every constraint has one, else keep all, which is said; null: keep all.
        num_dialogues: this many dialogues, drawn with the seed; 0: all.
        sampling: how answers are drawn; a low temperature obeys more often.
        finetuning: length and schedule; `train` must be last, as it is by default.
        dry_run: print this many rows and stop; 0: train.
    """

    policy: TrainedPolicy
    dialogues: DataSource
    instructions: InputPath | None = None
    list_samples: int = 4
    most_constraints: int = 3
    short_share: float = 0.5
    history: Literal["sampled", "given"] = "sampled"
    checker: str | None = "auto"
    num_dialogues: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    finetuning: FinetuningConfig = field(default_factory=lambda: FinetuningConfig(train="last"))
    dry_run: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("list_samples", "most_constraints"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("num_dialogues", "dry_run"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: must be 0 or above, got {getattr(self, name)}")
        if not 0 <= self.short_share <= 1:
            raise InputError(f"short_share: must lie between 0 and 1, got {self.short_share}")
        if self.finetuning.train != "last":
            raise InputError("finetuning.train: must be last; earlier answers were given under another instruction")

    def read_constraints(self) -> list[Constraint]:
        """Those that instructions combine; none: the policy writes lists of them."""
        return read_constraints(self.instructions) if self.instructions is not None else []

    @property
    def context(self) -> Context:
        """What a dialogue fits into: the policy's, or less where the training's rows are to be shorter."""
        return Context(Context.of_checkpoint(self.policy.folder).limit(self.finetuning.max_length))


def main(config: GhostAttentionConfig) -> None:
    if config.dry_run:
        show(config)
        return
    stage = open_stage(config)
    constraints, dialogues = config.read_constraints(), several_turns(config)
    sft_dialogues = load_conversations(config.sft_data) if config.sft_data is not None else []
    checker = chosen_checker(config.checker, constraints)
    renderer, context = renderer_of(config.policy), config.context
    kept = kept_answers(stage, config, dialogues)
    with training_work(stage, kept) as accelerator:
        # each dialogue answered under its instruction
        given = (config, constraints, dialogues, renderer, accelerator)
        instructions, answered = answered_under_instructions(*given, shards=stage.folder / kept.name)

        # the instruction in the first turn only; the loss on the last answer alone (config.finetuning.train)
        kept_rows, left_out = training_rows(instructions, answered, checker, renderer, context)
        if not kept_rows:
            why = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
            raise InputError(
                f"dialogues: none of {len(dialogues)} is left to train on ({why}); raise sampling.max_new_tokens where "
                "answers do not end, or name shorter dialogues, or instructions that the policy obeys"
            )
        record_rows(stage, kept_rows, left_out, possible=len(dialogues))
        rows, start, name = [row for _, row in kept_rows], config.policy.folder, "ghost attention"
        finetune_stage(stage, accelerator, start, rows, config, name=name, mixed_in=sft_dialogues)


def kept_answers(stage: Stage, config: GhostAttentionConfig, dialogues: Sequence[Conversation]) -> Kept:
    """Drawn answers that outlive a kill."""
    asked = {name: getattr(config, name) for name in ("list_samples", "most_constraints", "short_share", "history")}
    asked |= {"seed": config.seed, "too_long": config.too_long, "finetuning.max_length": config.finetuning.max_length}
    params = config.sampling.seeded(config.seed)
    return kept_samples(dialogues, 1, params, stage, "policy", inputs=["instructions"], **asked)


def answered_under_instructions(
    config: GhostAttentionConfig,
    constraints: Sequence[Constraint],
    dialogues: Sequence[Conversation],
    renderer: Renderer,
    accelerator: Accelerator,
    shards: Path | None = None,
) -> tuple[list[Instruction], list[Answered]]:
    """Each dialogue's instruction, and the dialogue answered by the policy under it.

    Args:
        constraints: that the instructions combine; none: the policy writes lists of them.
        shards: folder in which the answers outlive a kill; None: nothing is written.
    """
    fits = Room(config.context, renderer, config.sampling.max_new_tokens, config.too_long)
    sampler = open_sampler(config.policy, accelerator.device, too_long=config.too_long, renderer=renderer)
    ask = make_ask(sampler, config.sampling.seeded(config.seed), accelerator, shards)
    instructions = draw_instructions(
        constraints or own_lists(ask, config.list_samples),
        len(dialogues),
        random.Random(f"instructions/{config.seed}"),
        most=config.most_constraints,
        short_share=config.short_share,
    )
    texts = [instruction.text for instruction in instructions]
    if config.history == "given":
        return instructions, answer_last_turns(dialogues, texts, ask, fits)
    whole = config.too_long == "skip"
    return instructions, answer_dialogues(dialogues, texts, sampling_context, ask, fits, whole=whole)


def record_rows(
    stage: Stage, rows: Sequence[tuple[Instruction, Conversation]], left_out: Mapping[str, int], possible: int
) -> None:
    """Write the rows and their counts, and say them; `possible`: rows that there could be."""
    turns = sum(turns_of(row) for _, row in rows) / len(rows)
    counts = {"rows": len(rows), "left_out": dict(left_out), "turns": turns}
    stage.write_rows("rows.jsonl", ({"instruction": i.text, "messages": row} for i, row in rows))
    stage.write_json("ghost_attention.json", counts, shown=f"ghost attention: {counts}")
    stage.closing.rows(len(rows), left_out)
    stage.closing.suspect(suspicious_selection(len(rows), possible, left_out))


def chosen_checker(spec: str | None, constraints: Sequence[Constraint]) -> Checker | None:
    """Who says which rows obey, and so are trained on; None: all are."""
    if spec == "auto":
        spec = "pattern" if constraints and all(c.pattern is not None for c in constraints) else None
        if spec is None:
            notice(
                "checker: the constraints have no patterns, so rows that do not obey are trained on too; "
                "write patterns into the instructions file, or name a checker"
            )
    return None if spec is None else load_checker(spec, constraints)


def several_turns(config: GhostAttentionConfig) -> list[Conversation]:
    """The dialogues of two turns and more, as many as asked for."""
    dialogues = [d for d in load_conversations(config.dialogues) if turns_of(d) > 1]
    if not dialogues:
        raise InputError(f"dialogues: no dialogue of {config.dialogues} has two turns; name another set")
    count = min(len(dialogues), config.dry_run or config.num_dialogues or len(dialogues))
    return random.Random(f"dialogues/{config.seed}").sample(dialogues, count)


def training_rows(
    instructions: Sequence[Instruction],
    answered: Sequence[Answered],
    checker: Checker | None,
    renderer: Renderer,
    context: Context,
) -> tuple[list[tuple[Instruction, Conversation]], Counter[str]]:
    """Each usable dialogue with the instruction in its first turn, beside it; why the others are left out."""
    left_out: Counter[str] = Counter()
    kept: list[tuple[Instruction, Conversation]] = []
    judged: list[Conversation] = []  # what a user reads of it
    for instruction, answer in zip(instructions, answered, strict=True):
        row = training_context(answer.trained, instruction.text) if turns_of(answer.messages) > 1 else []
        if not row:
            left_out["no room in the context for two turns"] += 1
        elif not answer.finished or says_nothing(answer.messages[-1]["content"]):
            left_out["empty or without end"] += 1
        elif not context.holds(len(renderer.dialogue(row).input_ids)):
            left_out["too long: cut, it would lose its instruction"] += 1
        else:
            kept.append((instruction, row))
            judged.append(training_context(answer.messages, instruction.text))
    if checker is not None:
        obeyed = checker([i for i, _ in kept], judged)
        left_out["does not obey"] += len(kept) - sum(obeyed)
        kept = [pair for pair, ok in zip(kept, obeyed, strict=True) if ok]
    return kept, +left_out


def own_lists(ask: Ask, times: int) -> list[Constraint]:
    """Hobbies, languages and public figures that the policy names."""
    answers: dict[str, list[str]] = {}
    for number, (kind, question) in enumerate(LIST_QUESTIONS.items(), start=1):
        prompts: list[Conversation] = [[{"role": "user", "content": question}]] * times
        samples = ask(prompts, [LIST_KEYS * number + i for i in range(times)])
        answers[kind] = [sample.text for sample in samples]
    return constraints_from_lists(answers)


def show(config: GhostAttentionConfig) -> None:
    """The dry run: print what the policy saw and what would be trained on."""
    inputs_of(config)  # checks them
    constraints, dialogues = config.read_constraints(), several_turns(config)
    chosen_checker(config.checker, constraints)
    accelerator, renderer = make_accelerator(seed=config.seed), renderer_of(config.policy)
    instructions, answered = answered_under_instructions(config, constraints, dialogues, renderer, accelerator)
    for instruction, answer in zip(instructions, answered, strict=True):
        if not answer.messages:
            continue
        print("sampled under:")
        for message in sampling_context(answer.messages, instruction.text):
            print(f"  {message['role']}: {message['content']}")
        row = coloured(renderer, training_context(answer.trained, instruction.text), instruction.text)
        print(f"trained on (instruction yellow, loss green):\n  {row}\n")


if __name__ == "__main__":
    run_recipe(main, GhostAttentionConfig)
