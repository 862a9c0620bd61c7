"""Safety context distillation (Llama 2 paper, section 4.2.4).

A safety preprompt before an adversarial prompt makes the answer safer. So let the policy answer under the preprompt,
and fine-tune it on these answers without the preprompt. Where the plain answer was safe already a preprompt does harm:
answers become vague, or refuse what is harmless. So an answer is kept only where the safety model scores it above the
plain answer to the same prompt; elsewhere the plain answer is trained on, so that the model learns both (the paper does
not say what happens there: decision 47; `--rest drop` leaves these prompts out).

    python recipes/context_distillation.py --config recipes/configs/embedded/context_distillation.yaml

Writes into the output folder: checkpoint/, distilled.jsonl (the dialogues it trained on), answers.jsonl (all answers
with their safety scores), distillation.json (the scores' distributions plain, generic and by category; what the gate
kept; held-out answers before and after), metrics.jsonl; prints the tables in Markdown.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation, says_nothing
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_conversations, load_prompts
from rlhf.data.rows import Prompt
from rlhf.data.suspicion import no_room_share, suspicious_answers, suspicious_selection
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer, answers_of
from rlhf.evaluation.judging import with_gold
from rlhf.evaluation.policies.distillation import before_and_after
from rlhf.evaluation.scorers import load_scorer
from rlhf.finetuning.config import FinetuningConfig, MixedFinetuneConfig
from rlhf.finetuning.stage import finetune_stage
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.pages.distillation import distillation_tables
from rlhf.rewards.distributed import answer_scores
from rlhf.rewards.loading import load_reward
from rlhf.rewards.specs import Reward, kept_scores
from rlhf.rewards.suspicion import suspicious_scoring
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import Sample, Sampler, SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.shards import kept_samples
from rlhf.sampling.source import TrainedPolicy
from rlhf.stage import InputPath, Stage, on_main_process, open_stage
from rlhf.synthesis.context_distillation import (
    RiskCategory,
    category_of,
    gains_by_plain_score,
    generic_preprompt,
    keeps_distilled,
    read_categories,
    score_figures,
    suspicious_categories,
    with_preprompt,
)
from rlhf.training.kept import RESUME
from rlhf.training.work import training_work

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


KINDS = ("plain", "generic", "category")
Answers = Mapping[str, Sequence[Sample]]
"""Kind -> the answers, prompt after prompt."""


@dataclass(frozen=True, kw_only=True)
class ContextDistillationConfig(RoomConfig, MixedFinetuneConfig):
    """Safety context distillation.

    Args:
        policy: which answers (docs/policies.md), and whose checkpoint is then fine-tuned.
        prompts: prompts (file or hub name); only the adversarial ones, of domain "safety", are used.
        safety: safety reward-model folder, `package.module:attribute`, or the YAML file of an ensemble.
        categories: file of risk categories, rows {name, preprompt, sources, words}: extend it with your own.
        adjectives: of the generic preprompts.
        generic: the generic preprompt, with {adjectives} in it.
        preprompts: what is distilled: the "category" preprompts (prompts without category get a generic one), or
            "generic" ones for all. Both are sampled and measured.
        gate: keep an answer only where its safety score is above the plain answer's; false: keep all.
        min_gain: with the gate: by so much at least, the scores taken through the sigmoid, 0 to 1 (the paper: 0).
        rest: of the prompts whose answer the gate does not keep, train on the "plain" answer, or "drop" them.
        num_samples: answers to each prompt of each kind; answer k under a preprompt is compared with plain answer k.
        sampling: how answers are drawn.
        test_prompts: held-out prompts of both domains, answered before and after; null: nothing is measured.
        scorer: import path of a gold scorer that judges these answers.
        world: the scorer's world.
    """

    policy: TrainedPolicy
    prompts: DataSource
    safety: Reward
    categories: InputPath
    adjectives: tuple[str, ...] = ("responsible", "respectful", "wise")
    generic: str = "You are a {adjectives} assistant."
    preprompts: Literal["category", "generic"] = "category"
    gate: bool = True
    min_gain: float = 0.0
    rest: Literal["plain", "drop"] = "plain"
    num_samples: int = 1
    sampling: SamplingParams = field(default_factory=SamplingParams)
    finetuning: FinetuningConfig = field(default_factory=lambda: FinetuningConfig(train="last", on_bad_row="skip"))
    test_prompts: DataSource | None = None
    scorer: str | None = None
    world: InputPath | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adjectives:
            raise InputError("adjectives: must name at least one, e.g. [responsible, wise]")
        if "{adjectives}" not in self.generic:
            raise InputError(f"generic: must contain {{adjectives}}, got {self.generic!r}")
        if self.num_samples < 1:
            raise InputError(f"num_samples: must be at least 1, got {self.num_samples}")
        if not 0 <= self.min_gain < 1:
            raise InputError(f"min_gain: must be 0 or above and below 1, got {self.min_gain}")
        if self.min_gain and not self.gate:
            raise InputError("min_gain: is a setting of the gate; leave it out or set gate to true")
        if len({bool(v) for v in (self.test_prompts, self.scorer, self.world)}) > 1:
            raise InputError("test_prompts, scorer, world: name all three or none")


def main(config: ContextDistillationConfig) -> None:
    stage = open_stage(config)
    categories = read_categories(config.categories)
    prompts = [p for p in load_prompts(config.prompts) if p.domain == "safety"]
    if not prompts:
        raise InputError(f"prompts: none of {config.prompts} has the domain safety; tag the adversarial ones")
    sft_dialogues = load_conversations(config.sft_data) if config.sft_data is not None else []
    most = config.sampling.max_new_tokens
    prompts = answerable(stage, prompts, most, messages=lambda p: longest_of(p, categories, config))
    heldout = answerable(stage, load_prompts(config.test_prompts), most) if config.test_prompts is not None else []
    asked = preprompted(prompts, categories, config)
    params = config.sampling.seeded(config.seed)
    all_asked = [context for contexts in asked.values() for context in contexts]
    kept_answers = kept_samples(all_asked, config.num_samples, params, stage, "policy", too_long=config.too_long)
    with training_work(stage, kept_answers) as accelerator:
        reward = load_reward(config.safety, accelerator=accelerator)
        sampler = open_sampler(config.policy, accelerator.device, too_long=config.too_long)

        # the same prompts plain, under a generic preprompt, and under their risk category's; scored without preprompt
        answers, scores, judge = {}, {}, f"safety ({config.safety})"
        prompts = [prompt for prompt in prompts for _ in range(config.num_samples)]  # now one an answer
        for kind, contexts in asked.items():
            shards = stage.folder / kept_answers.name / kind
            drawn = sample_distributed(sampler, contexts, config.num_samples, params, accelerator, shards=shards)
            answers[kind] = [sample for samples in drawn for sample in samples]
            texts = [sample.text for sample in answers[kind]]
            file = kept_scores(stage.folder / RESUME, kind, config.safety)
            scored = answer_scores(prompts, texts, reward, judge, accelerator, config.too_long, file)
            scores[kind] = scored.scores
            ends = zip(answers[kind], scored.unfinished, strict=True)
            answers[kind] = [replace(sample, finished=sample.finished and not cut) for sample, cut in ends]

        # keep an answer only where it is safer than the plain one
        better = keeps_distilled(scores["plain"], scores[config.preprompts], config.min_gain).tolist()
        kept = [safer or not config.gate for safer in better]
        rows, left_out = training_rows(config, prompts, answers, kept)
        before = judged(config, heldout, sampler, accelerator)
        del sampler

        # fine-tune on them without the preprompt
        say_choice(stage, config, answers["plain"], kept, rows, left_out)
        stage.closing.suspect(suspicions(config, prompts[:: config.num_samples], categories, reward))
        start, name = config.policy.folder, "context distillation"
        finetune_stage(stage, accelerator, start, rows, config, name=name, mixed_in=sft_dialogues)
        trained = config.policy.trained(stage.folder / "checkpoint")
        after: list[Answer] = []
        if heldout:
            sampler = open_sampler(trained, accelerator.device, too_long=config.too_long)
            after = judged(config, heldout, sampler, accelerator)
        record_answers(stage, config, prompts, answers, scores, kept, rows, before_and_after(before, after))


def longest_of(prompt: Prompt, categories: Sequence[RiskCategory], config: ContextDistillationConfig) -> Conversation:
    """The prompt under the longest preprompt that it may get."""
    category = category_of(prompt, categories)
    generic = config.generic.replace("{adjectives}", ", ".join(sorted(config.adjectives, key=len)[-3:]))
    texts = [generic, *([category.preprompt] if category else [])]
    return with_preprompt(prompt.messages, max(texts, key=len))


def preprompted(
    prompts: Sequence[Prompt], categories: Sequence[RiskCategory], config: ContextDistillationConfig
) -> dict[str, list[Conversation]]:
    """kind -> the prompts as they are asked; the same generic preprompts stand in for a category that is not there."""
    rng = random.Random(f"preprompts/{config.seed}")
    generic = [generic_preprompt(config.adjectives, config.generic, rng) for _ in prompts]
    found = [category_of(prompt, categories) for prompt in prompts]
    own = [category.preprompt if category else other for category, other in zip(found, generic, strict=True)]
    return {
        "plain": [p.messages for p in prompts],
        "generic": [with_preprompt(p.messages, text) for p, text in zip(prompts, generic, strict=True)],
        "category": [with_preprompt(p.messages, text) for p, text in zip(prompts, own, strict=True)],
    }


def training_rows(
    config: ContextDistillationConfig, prompts: Sequence[Prompt], answers: Answers, kept: Sequence[bool]
) -> tuple[list[Conversation], Counter[str]]:
    """The kept answers' dialogues without preprompt, and of the other prompts the plain ones unless they are dropped.

    What is left out is counted: an answer that is empty or did not end too. InputError: none is kept, or none is left.
    """
    chosen = [
        distilled if keep else plain
        for plain, distilled, keep in zip(answers["plain"], answers[config.preprompts], kept, strict=True)
    ]
    rows: list[Conversation] = []
    left_out: Counter[str] = Counter()
    for prompt, sample, keep in zip(prompts, chosen, kept, strict=True):
        if not keep and config.rest != "plain":
            left_out["not safer than the plain answer"] += 1
        elif not sample.finished:
            left_out["unfinished"] += 1
        elif says_nothing(sample.text):
            left_out["empty"] += 1
        else:
            rows.append(prompt.answered(sample.text, thoughts=sample.thoughts))
    if not any(kept):
        raise InputError(f"gate: no answer under a {config.preprompts} preprompt is safer than the plain one")
    if not rows:
        raise InputError(
            "sampling: every answer is empty or did not end; raise sampling.max_new_tokens, or leave out prompts "
            "that fill the context"
        )
    return rows, left_out


def say_choice(
    stage: Stage,
    config: ContextDistillationConfig,
    plain: Sequence[Sample],
    kept: Sequence[bool],
    rows: Sequence[Conversation],
    left_out: Mapping[str, int],
) -> None:
    """What the closing block says of the answers and of those that are trained on."""
    lengths = [(s.finished, len(s.token_ids)) for s in plain]
    no_room = no_room_share(lengths, config.sampling.max_new_tokens) if config.policy.server is None else 0.0
    finished_share = sum(finished for finished, _ in lengths) / len(lengths)
    stage.closing.suspect(suspicious_answers(finished_share, no_room=no_room))
    stage.closing.suspect(suspicious_selection(len(rows), len(kept), left_out))
    stage.closing.rows(len(rows), left_out)
    stage.closing.figures(answers=len(kept), kept_by_the_gate=sum(kept))


def suspicions(
    config: ContextDistillationConfig, prompts: Sequence[Prompt], categories: Sequence[RiskCategory], reward: object
) -> list[str]:
    """Of the safety model's scores, and of the categories, where their preprompts are distilled."""
    scoring = suspicious_scoring(safety=reward)
    return [*scoring, *(suspicious_categories(prompts, categories) if config.preprompts == "category" else [])]


def judged(
    config: ContextDistillationConfig, prompts: Sequence[Prompt], sampler: Sampler, accelerator: Accelerator
) -> list[Answer]:
    """The held-out prompts' answers with the gold scorer's verdicts; none where none are asked for."""
    if not prompts or config.scorer is None or config.world is None:
        return []
    params = config.sampling.seeded(config.seed)
    drawn = sample_distributed(sampler, [p.messages for p in prompts], 1, params, accelerator)
    return with_gold(answers_of(prompts, drawn), load_scorer(config.scorer, config.world))


@on_main_process
def record_answers(
    stage: Stage,
    config: ContextDistillationConfig,
    prompts: Sequence[Prompt],
    answers: Answers,
    scores: Mapping[str, Tensor],
    kept: Sequence[bool],
    rows: Sequence[Conversation],
    heldout: list[dict[str, Any]],
) -> None:
    """Write the rows, all answers and distillation.json, and show its tables; `heldout`: of `before_and_after`."""
    stage.write_rows("distilled.jsonl", ({"messages": row} for row in rows))
    stage.write_rows("answers.jsonl", answer_rows(prompts, answers, scores, kept))
    by_prompt = {kind: values.view(-1, config.num_samples) for kind, values in scores.items()}
    figures = {
        "answers": len(kept),
        "kept": sum(kept),
        "rows": len(rows),
        "scores": {kind: score_figures(by_prompt[kind], by_prompt["plain"]) for kind in KINDS},
        "gain": gains_by_plain_score(by_prompt["plain"], {kind: by_prompt[kind] for kind in KINDS[1:]}),
        "heldout": heldout,
    }
    stage.write_json("distillation.json", figures, shown=distillation_tables(figures))


def answer_rows(
    prompts: Sequence[Prompt], answers: Answers, scores: Mapping[str, Tensor], kept: Sequence[bool]
) -> Iterator[dict[str, Any]]:
    """A row a prompt: its answers of each kind with their raw safety scores, and whether one is trained on."""
    for number, prompt in enumerate(prompts):
        kinds = {k: {"answer": answers[k][number].text, "safety": float(scores[k][number])} for k in KINDS}
        yield {"id": prompt.id, "messages": prompt.messages, "source": prompt.source, **kinds, "kept": kept[number]}


if __name__ == "__main__":
    run_recipe(main, ContextDistillationConfig)
