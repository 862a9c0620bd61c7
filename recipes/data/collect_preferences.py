"""Collect preferences over the newest models' answers (Llama 2 paper, section 3.2.1).

For each prompt two answers are drawn, from two model variants and at different temperatures, so that they differ. An
annotator (people, a file that is filled in, judge models, a reward, the simulated world, a class of your own) must
choose one, and says how much better it is and whether each is safe. Pairs that nobody can choose between (the same text
twice, an empty answer) are not asked about; these and the skipped ones are counted.

    python recipes/data/collect_preferences.py --config recipes/configs/embedded/collect_preferences.yaml

What is drawn and every judgement are kept at once: killed and started again, it goes on. Writes into the output folder,
as rows of rlhf.data.rows: preferences_train.jsonl, preferences_test.jsonl (of prompts that no training reads), and
statistics.json (the paper's table: sizes, lengths, strengths, safety labels, by domain; and the batch's figures).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args

from rlhf.annotation.labelling import batch_figures, batch_name, label_batch, preferences_of, require_complete
from rlhf.annotation.protocol import Pair, Part
from rlhf.annotation.registry import AnnotatorFiles, asked_of, make_annotator
from rlhf.annotation.store import Store
from rlhf.configuration import run_recipe
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Domain, Preference, Prompt
from rlhf.data.splitting import split_by_first_turn
from rlhf.data.statistics import preference_statistics
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.evaluation.reward_models.pair_scores import score_pairs
from rlhf.evaluation.reward_models.preference_figures import accuracy_figures
from rlhf.imports import own_code
from rlhf.jsonl import read_rows, write_rows
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.models.policy import load_tokenizer
from rlhf.rewards.distributed import deal_out
from rlhf.rewards.loading import load_reward
from rlhf.rewards.specs import Reward
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import answerable
from rlhf.sampling.shards import kept_samples
from rlhf.sampling.source import AnsweringPolicy, PolicySource, TokenizedPolicy, named
from rlhf.stage import Effect, InputPath, KeepingConfig, Kept, Stage, open_stage
from rlhf.training.work import launched_work

if TYPE_CHECKING:
    from accelerate import Accelerator

ENDED = "ended.json"
"""Of each answer drawn, whether it came to its end; beside the pairs that are kept."""


@dataclass(frozen=True, kw_only=True)
class CollectPreferencesConfig(RoomConfig, KeepingConfig):
    """Preference collection.

    Args:
        policy: the newest model, which gives the first answer (docs/policies.md).
        prompts: prompts whose pairs are trained on (file or hub name).
        test_prompts: other prompts, whose pairs measure the reward models; null: `held_out` of `prompts` do.
        held_out: share of `prompts` that is held out where there are no test prompts, the same ones in every batch.
        second_policy: another variant, which gives the second answer; null: `policy` again.
        annotator: who judges: people (on the page of `rlhf annotate`), file (to be filled in), judge (models behind
            servers), proxy (a reward), simulated (the world's), or `package.module:Class` of your own
            (docs/annotation.md).
        annotator_options: options of the annotator's class.
        world: file or folder of the simulated world, for an annotator that takes one.
        labels: the file that keeps every judgement, which several stages may share; null: `<output>.labels.sqlite`.
        labels_per_pair: judgements that each pair wants, of as many annotators.
        helpfulness: newest helpfulness reward model (folder or import path), to compare with the batch; null: none.
        safety: the same for safety.
        temperatures: of the first and of the second answer.
        pairs_per_prompt: pairs drawn for each prompt.
        safety_pairs_per_prompt: the same for prompts of domain safety; null: as for the others.
        sampling: length of the answers; its temperature is not used.
        seed: of the draws (added to sampling.seed) and of the annotator.
    """

    policy: TokenizedPolicy
    prompts: DataSource
    test_prompts: DataSource | None = None
    held_out: float = 0.1
    second_policy: AnsweringPolicy | None = None
    annotator: str = "people"
    annotator_options: Annotated[dict[str, Any], AnnotatorFiles()] = field(default_factory=dict)
    world: InputPath | None = None
    labels: Annotated[Path | None, Effect.NONE] = None
    labels_per_pair: int = 1
    helpfulness: Reward | None = None
    safety: Reward | None = None
    temperatures: tuple[float, float] = (0.8, 1.2)
    pairs_per_prompt: int = 1
    safety_pairs_per_prompt: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pairs_per_prompt", "safety_pairs_per_prompt", "labels_per_pair"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}: must be at least 1, got {value}")
        if min(self.temperatures) <= 0:
            raise InputError(f"temperatures: must be above 0, got {self.temperatures}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out: must lie between 0 and 1, got {self.held_out}")

    @property
    def labels_file(self) -> Path:
        """The store of the judgements."""
        return self.labels or self.output.with_name(f"{self.output.name}.labels.sqlite")

    @property
    def policies(self) -> dict[str, PolicySource]:
        """Field -> whose answers stand there."""
        return {"policy": self.policy, "second_policy": named(self.second_policy) or self.policy}


def main(config: CollectPreferencesConfig) -> None:
    stage = open_stage(config)
    parts = parts_with_room(config, stage)
    labels = config.labels_file
    batch = batch_name(config.output)
    given = {"world": config.world, "seed": config.seed}
    annotator = make_annotator(config.annotator, config.annotator_options, **given, store=labels, batch=batch)
    asked = asked_of(annotator, config.annotator, config.annotator_options, **given)

    kept = kept_draws(stage, config, parts)
    with launched_work(stage, kept) as accelerator:
        folder = stage.folder / kept.name
        drawn = draw_pairs(config, parts, folder, accelerator)
        judged = folder / "judged"
        stage.agreed(lambda: judged.unlink(missing_ok=True))  # of an attempt before
        found: Batch | None = None
        if stage.is_main:
            found = judged_batch(stage, config, annotator, asked, drawn)
            judged.touch()
        # people take longer than a barrier waits; if the main process fails, the launch ends
        while not judged.exists():
            time.sleep(1.0)
        rows = stage.agreed(lambda: [] if found is None else found.rows)
        agreement = agreement_with_rewards(config, rows, accelerator)
        if found is not None:
            record_statistics(stage, config, found, agreement)
            stage.closing.suspect(suspicious_ends(json.loads((folder / ENDED).read_text(encoding="utf-8"))))
            stage.closing.suspect(getattr(annotator, "suspicious", ()))


class Batch(NamedTuple):
    """What was judged: the preferences, the batch's figures (who judged, how they agree), and why -> pairs without."""

    rows: list[Preference]
    figures: dict[str, Any]
    left_out: dict[str, int]


def judged_batch(
    stage: Stage, config: CollectPreferencesConfig, annotator: Any, asked: str, drawn: Sequence[Pair]
) -> Batch:
    """Have the pairs judged, and write the preferences.

    Args:
        asked: what decides the annotator's judgements.

    Raises:
        InputError: there is nothing to ask, not every pair is judged, or no answer to train on was chosen.
    """
    worth_asking = list({pair.id: pair for pair in drawn if pair.a and pair.b and pair.a != pair.b}.values())
    if not worth_asking:
        raise InputError("prompts: no two answers of any prompt differ; raise the temperatures, or name more")
    batch = batch_name(config.output)
    with Store(config.labels_file) as store:
        store.add_batch(batch, worth_asking, labels=config.labels_per_pair, asked=asked)
        with own_code("annotator", config.annotator):
            label_batch(store, batch, annotator)
        require_complete(store, batch)
        rows_of = preferences_of(store, batch)
        figures = batch_figures(store, batch)
    parts = get_args(Part)
    rows = {part: [row for p in drawn if p.part == part for row in rows_of.get(p.id, [])] for part in parts}
    if not rows["train"]:
        raise InputError(
            f"annotator: {config.annotator} chose an answer in none of the pairs to train on, so there is nothing "
            "to write; name more prompts, or another file of --labels to judge them anew"
        )
    for part, some in rows.items():
        stage.write_rows(f"preferences_{part}.jsonl", some)
    alike = sum(pair.a == pair.b or not (pair.a and pair.b) for pair in drawn)
    left_out = {"nothing to compare": alike, "skipped": sum(pair.id not in rows_of for pair in drawn) - alike}
    return Batch([row for some in rows.values() for row in some], figures, left_out)


def record_statistics(
    stage: Stage,
    config: CollectPreferencesConfig,
    batch: Batch,
    agreement: Mapping[str, Any],
) -> None:
    """Write what the preferences are like; the closing block says how many there are.

    Args:
        agreement: of the newest reward models with the annotators.
    """
    rows, figures, left_out = batch
    domains = {"all": rows} | {d: [row for row in rows if row.domain == d] for d in get_args(Domain)}
    tokenizer = load_tokenizer(config.policy.folder)
    statistics = {name: preference_statistics(some, tokenizer) for name, some in domains.items() if some}
    figures |= {"agreement_with_rewards": agreement, "nothing_to_compare": left_out["nothing to compare"]}
    stage.write_json("statistics.json", statistics | {"left_out": sum(left_out.values()), "batch": figures})
    stage.closing.rows(len(rows), left_out)


def parts_of(config: CollectPreferencesConfig) -> dict[Part, list[Prompt]]:
    """The prompts of the rows that are trained on, and of those that measure."""
    prompts = load_prompts(config.prompts)
    if config.test_prompts is not None:
        return {"train": prompts, "test": load_prompts(config.test_prompts)}
    shares: dict[Part, float] = {"train": 1 - config.held_out, "test": config.held_out}
    return split_by_first_turn(prompts, shares, 0, lambda prompt: prompt.messages)


def parts_with_room(config: CollectPreferencesConfig, stage: Stage) -> dict[Part, list[Prompt]]:
    """`parts_of`, by `too_long`."""
    most = config.sampling.max_new_tokens
    return {part: answerable(stage, some, most) for part, some in parts_of(config).items()}


def kept_draws(stage: Stage, config: CollectPreferencesConfig, parts: dict[Part, list[Prompt]]) -> Kept:
    """The folder of what is drawn, taken over by an attempt that would draw the same."""
    prompts = [prompt for some in parts.values() for prompt in some]
    values = {
        name: getattr(config, name) for name in ("pairs_per_prompt", "safety_pairs_per_prompt", "too_long", "seed")
    }
    values |= {"temperatures": list(config.temperatures), "domains": [prompt.domain for prompt in prompts]}
    values |= {"parts": {part: len(some) for part, some in parts.items()}}
    messages = [prompt.messages for prompt in prompts]
    return kept_samples(messages, config.pairs_per_prompt, config.sampling, stage, *config.policies, **values)


def draw_pairs(
    config: CollectPreferencesConfig, parts: dict[Part, list[Prompt]], folder: Path, accelerator: Accelerator
) -> list[Pair]:
    """`pairs_per_prompt` pairs of every prompt, in the prompts' order; those that an attempt before drew are read."""
    file = folder / "pairs.jsonl"
    if file.is_file() and (folder / ENDED).is_file():
        return [Pair(**{**row, "models": tuple(row["models"])}) for _, row in read_rows(file)]

    prompts = [(part, prompt) for part, some in parts.items() for prompt in some]
    counts = {"helpfulness": config.pairs_per_prompt}
    counts["safety"] = config.safety_pairs_per_prompt or config.pairs_per_prompt
    drawn: list[list[list[str]]] = [[] for _ in prompts]  # by place: the two files may number their rows alike
    ended: list[bool] = []
    sources = config.policies.items()
    for number, ((name, source), temperature) in enumerate(zip(sources, config.temperatures, strict=True)):
        sampler = open_sampler(source, accelerator.device, too_long=config.too_long, field=name)
        seed = config.sampling.seed + 2 * config.seed + number  # two answers never share their draws
        params = replace(config.sampling, temperature=temperature, seed=seed)
        for count in sorted({counts[prompt.domain] for _, prompt in prompts}):
            places = [i for i, (_, prompt) in enumerate(prompts) if counts[prompt.domain] == count]
            asked = [prompts[i][1].messages for i in places]
            shards = folder / f"{number}_{count}"
            answers = sample_distributed(sampler, asked, count, params, accelerator, places, shards)
            for place, samples in zip(places, answers, strict=True):
                drawn[place].append([sample.text.strip() for sample in samples])
                ended += [sample.finished for sample in samples]
    first, second = (source.name for source in config.policies.values())
    pairs = [
        Pair(prompt.messages, a, b, prompt.domain, models=(first, second), part=part)
        for (part, prompt), answers in zip(prompts, drawn, strict=True)
        for a, b in zip(*answers, strict=True)
    ]
    if accelerator.is_main_process:
        (folder / ENDED).write_text(json.dumps(ended), encoding="utf-8")
        partial = file.with_suffix(".partial")
        write_rows(partial, pairs)
        partial.replace(file)
    return pairs


def agreement_with_rewards(
    config: CollectPreferencesConfig, rows: Sequence[Preference], accelerator: Accelerator
) -> dict[str, Any]:
    """Each domain's rows by its newest reward model: domain -> `accuracy_figures`; nothing where none is named.

    All processes call it with the same rows, and each scores its part.
    """
    figures = {}
    for domain in get_args(Domain):
        spec, own = getattr(config, domain), [row for row in rows if row.domain == domain]
        if spec is not None and own:
            reward = load_reward(spec, accelerator=accelerator)
            figures[domain] = accuracy_figures(own, deal_out(own, partial(score_pairs, reward), accelerator))
    return figures


if __name__ == "__main__":
    run_recipe(main, CollectPreferencesConfig)
