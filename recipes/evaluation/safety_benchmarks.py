"""TruthfulQA, ToxiGen and BOLD (Llama 2 paper, sections 2.3, 4.1 and 4.4, appendix A.4.7).

TruthfulQA by multiple choice (mc1, mc2) is exact and needs no judge. Where classifiers are named, the model also
answers TruthfulQA's questions, continues ToxiGen's prompts about 13 groups of people, and BOLD's, and the classifiers
say whether it is truthful and informative, toxic, or of positive or negative sentiment.

    python recipes/evaluation/safety_benchmarks.py --config recipes/configs/benchmarks/safety_benchmarks.yaml

Writes into the output folder: safety_benchmarks.json (the figures), generations.jsonl (every generated text with its
judge's probability); prints tables in Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation, Message
from rlhf.errors import InputError
from rlhf.evaluation.benchmarks import generated_groups, truthfulqa
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.drawing.tables import Cell, Table, as_markdown
from rlhf.report.drawing.text import interval, number
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import load_weights, open_sampler, renderer_of
from rlhf.sampling.protocol import Sampler, SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.source import AnsweringPolicy
from rlhf.stage import InputPath, StageConfig, open_stage
from rlhf.training.work import launched_work

# the text itself is continued, as by a model that was only pretrained
PLAIN_TEMPLATE = "{{- bos_token -}}{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"


@dataclass(frozen=True)
class Judge:
    """A classifier of texts and what its labels mean.

    Args:
        classifier: folder or hub name of a sequence classifier (safetensors).
        label: the label whose probability counts: toxic, positive, true.
        opposite: for sentiment, the label that is taken off (negative).
    """

    classifier: str
    label: str
    opposite: str | None = None


@dataclass(frozen=True, kw_only=True)
class SafetyBenchmarksConfig(RoomConfig, StageConfig):
    """Benchmarks of one policy; each that is named runs.

    Args:
        policy: which is evaluated (docs/policies.md).
        truthfulqa: TruthfulQA's mc_task.json, or rows of the same fields.
        truthful: judges pairs (question, answer); with `informative` or not at all. Without both there is no
            generation for TruthfulQA.
        informative: the same.
        toxigen: folder with ToxiGen's prompt files; needs `toxicity`.
        toxicity: judges what the model wrote.
        bold: BOLD's <domain>_prompt.json files; needs `sentiment`.
        sentiment: judges prompt and continuation together.
        prompts_per_group: of ToxiGen and BOLD, drawn at random; null: all.
        questions: the first questions of TruthfulQA, this many; null: all.
        template: chat asks the prompt as a user's message, plain lets the model continue the text.
        sampling: how texts are drawn; the paper's temperature and top_p.
        seed: of the prompts drawn; added to sampling.seed.
    """

    policy: AnsweringPolicy
    truthfulqa: InputPath | None = None
    truthful: Judge | None = None
    informative: Judge | None = None
    toxigen: InputPath | None = None
    toxicity: Judge | None = None
    bold: tuple[InputPath, ...] = ()
    sentiment: Judge | None = None
    prompts_per_group: int | None = None
    questions: int | None = None
    template: Literal["chat", "plain"] = "chat"
    sampling: SamplingParams = field(
        default_factory=lambda: SamplingParams(temperature=0.1, top_p=0.9, max_new_tokens=64)
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if self.truthfulqa is None and self.toxigen is None and not self.bold:
            raise InputError("truthfulqa, toxigen, bold: must name one benchmark's data at least")
        if (self.truthful is None) != (self.informative is None):
            raise InputError("truthful, informative: an answer is judged by both; name both or neither")
        for data, judge in (("toxigen", "toxicity"), ("bold", "sentiment"), ("truthfulqa", "truthful")):
            given, judged = getattr(self, data), getattr(self, judge)
            if (given and judged is None and data != "truthfulqa") or (judged and not given):
                raise InputError(f"{data}, {judge}: generated texts need their judge; name both or neither")
        if len({file.stem for file in self.bold}) < len(self.bold):
            raise InputError("bold: two files have the same name, which is the name of their figures; rename one")
        if self.sentiment is not None and self.sentiment.opposite is None:
            raise InputError("sentiment: needs its opposite label too, e.g. --sentiment.opposite negative")
        if self.policy.server is not None and (self.truthfulqa or self.template == "plain"):
            field, what = (
                ("truthfulqa", "give its probabilities") if self.truthfulqa else ("template", "go on with a text")
            )
            raise InputError(f"{field}: a server does not {what}; leave it out, or let the policy's own weights answer")
        for name in ("prompts_per_group", "questions"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")


def main(config: SafetyBenchmarksConfig) -> None:
    stage = open_stage(config)

    questions = truthfulqa.read_questions(str(config.truthfulqa))[: config.questions] if config.truthfulqa else []
    drawn = {"toxigen": generated_groups.read_toxigen(config.toxigen)} if config.toxigen else {}
    drawn |= {file.stem.removesuffix("_prompt"): generated_groups.read_bold(file) for file in config.bold}
    drawn = {name: generated_groups.draw(own, config.prompts_per_group, config.seed) for name, own in drawn.items()}
    template = PLAIN_TEMPLATE if config.template == "plain" else None
    fitting = partial(answerable, stage, max_new_tokens=config.sampling.max_new_tokens, chat_template=template)
    drawn = {name: fitting(own, messages=lambda prompt: _as_asked(prompt.text)) for name, own in drawn.items()}
    plain = config.template == "plain"
    answered = questions if config.truthful and config.informative else []
    answered = fitting(answered, messages=lambda q: _as_asked(q.prompt if plain else q.question))
    judge = _judges(config)
    with launched_work(stage) as accelerator:
        device = accelerator.device
        policy = load_weights(config.policy, device) if questions else None
        renderer = renderer_of(config.policy, template) if config.policy.server is None else None
        sampler = open_sampler(config.policy, device, too_long=config.too_long, renderer=renderer, model=policy)
        figures: dict[str, Any] = {}
        generations: list[dict[str, Any]] = []
        if policy is not None and renderer is not None:
            logprobs = truthfulqa.answer_logprobs(policy, renderer.tokenizer, questions)
            figures["truthfulqa"] = truthfulqa.multiple_choice_figures(questions, logprobs)
        if config.truthful and config.informative:
            asked = [q.prompt if plain else q.question for q in answered]
            ends = (truthfulqa.NEXT_QUESTION,) if plain else ()
            texts = _answers(sampler, asked, config, accelerator, ends)
            pairs = [q.question for q in answered]
            said = {name: judge(getattr(config, name), texts, pairs) for name in ("truthful", "informative")}
            figures["truthfulqa"] |= truthfulqa.generation_figures(said["truthful"], said["informative"])
            generations += _rows("truthfulqa", asked, texts, **said)
        for name, prompts in drawn.items():
            asked = [prompt.text for prompt in prompts]
            texts = _answers(sampler, asked, config, accelerator)
            if name == "toxigen":
                said = {"toxic": judge(config.toxicity, texts)}
                figures[name] = generated_groups.toxicity_figures(prompts, said["toxic"])
            else:
                whole = [f"{prompt} {text}" for prompt, text in zip(asked, texts, strict=True)]
                said = {"sentiment": judge(config.sentiment, whole)}
                figures[name] = generated_groups.sentiment_figures(prompts, said["sentiment"])
            generations += _rows(name, asked, texts, group=[prompt.group for prompt in prompts], **said)
        stage.write_json("safety_benchmarks.json", figures, shown=markdown(figures))
        stage.write_rows("generations.jsonl", generations)
        stage.closing.rows(len(questions) + sum(map(len, drawn.values())))


def _judges(config: SafetyBenchmarksConfig) -> Any:
    """(judge, texts, first texts of pairs) -> one number a text; every classifier is loaded once, before sampling."""
    from rlhf.models.text_judges import TextClassifier

    named = [j for j in (config.truthful, config.informative, config.toxicity, config.sentiment) if j is not None]
    loaded = {spec: TextClassifier(spec) for spec in dict.fromkeys(judge.classifier for judge in named)}
    for judge in named:
        for label in (judge.label, *([judge.opposite] if judge.opposite else [])):
            loaded[judge.classifier].probabilities(["a"], label)  # a label that it lacks is named before sampling

    def said(judge: Judge, texts: Sequence[str], questions: Sequence[str] | None = None) -> list[float]:
        classifier = loaded[judge.classifier]
        first, second = (texts, None) if questions is None else (questions, texts)
        found = classifier.probabilities(first, judge.label, pairs=second)
        if judge.opposite is not None:
            found = found - classifier.probabilities(first, judge.opposite, pairs=second)
        return [round(value, 6) for value in found.tolist()]

    return said


def _answers(
    sampler: Sampler, asked: list[str], config: SafetyBenchmarksConfig, accelerator: Any, ends: tuple[str, ...] = ()
) -> Any:
    """One text for each prompt, cut before any of `ends`."""
    stop = (*config.sampling.stop, *ends)
    params = replace(config.sampling, stop=stop, seed=config.sampling.seed + config.seed)
    drawn = sample_distributed(sampler, [_as_asked(text) for text in asked], 1, params, accelerator)
    return [samples[0].text for samples in drawn]


def _as_asked(text: str) -> Conversation:
    return [Message(role="user", content=text)]


def _rows(benchmark: str, asked: list[str], texts: list[str], **columns: list[Any]) -> list[dict[str, Any]]:
    return [
        {"benchmark": benchmark, "prompt": prompt, "text": text, **{name: own[i] for name, own in columns.items()}}
        for i, (prompt, text) in enumerate(zip(asked, texts, strict=True))
    ]


def markdown(figures: dict[str, Any]) -> str:
    """A table a benchmark: mean with its 95 % interval, and the number of texts where groups differ in it."""
    return "\n\n".join(
        f"**{name}**\n\n"
        + as_markdown(
            Table(
                [("", ""), ("Mean", ""), ("Texts", "")],
                [
                    [Cell(row), Cell(number(one["mean"]), interval(one["ci"])), Cell(str(one.get("n", "")))]
                    for row, one in own.items()
                ],
            )
        )
        for name, own in figures.items()
    )


if __name__ == "__main__":
    run_recipe(main, SafetyBenchmarksConfig)
