"""SFT rows, preference pairs and prompts of simple, safe text: the data of the QLoRA report (decisions 9 and 10).

Reads ELI5 (Reddit posts with answers and upvotes) and Simple Wikipedia (articles; a model writes the question for each
paragraph), one or both; cleans and filters every text; splits by question; and removes what leaks between the splits.

    python recipes/data/simple_text_data.py --eli5 eli5.jsonl.gz --articles wikimedia/wikipedia/20231101.simple \\
        --question_model runs/chat/checkpoint --toxicity_model s-nlp/roberta_toxicity_classifier \\
        --embedding_model sentence-transformers/all-MiniLM-L6-v2 --output runs/simple_text

Everything is streamed: memory holds the models, a batch and the held-out questions' embeddings. Writes, of each part
(train, validation, test) that has such rows:

    sft_<part>.jsonl           a dialogue of every passage, and of every post with one answer
    preferences_<part>.jsonl   pairs of the answers of a post with several, of different score
    prompts_<part>.jsonl       the other posts' questions
    data.json, index.html      counts of every step, distributions, leakage, examples of what each step dropped
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation
from rlhf.data.corpus.dealing import Candidate, Dealer, Embed
from rlhf.data.corpus.eli5 import attach_comments, post_of, rows_of_post
from rlhf.data.corpus.simple_text import (
    Ask,
    Log,
    TextFilter,
    Toxicity,
    batches,
    filtered_passages,
    filtered_posts,
    parsed,
)
from rlhf.data.corpus.simple_wikipedia import article_of, row_of_passage
from rlhf.data.corpus.text_filters import FilterConfig
from rlhf.data.corpus.wikitext import joined_lines
from rlhf.data.fields import DataSource
from rlhf.data.loading import OnBadRow, source_rows
from rlhf.data.splitting import first_turn, part_of
from rlhf.errors import InputError
from rlhf.models.checkpoint.fields import LocalOrHubModel
from rlhf.report.pages.simple_text import build_data_page, text_tables
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.shards import ShardWriter, kept_samples, read_shards
from rlhf.sampling.source import AnsweringPolicy, named
from rlhf.stage import KeepingConfig, Stage, on_main_process, open_stage, options_of, peak_memory_mb
from rlhf.stage.kept import Kept
from rlhf.stage.progress import counted

PASSAGES = ("articles", "filters", "toxicity_model", "toxicity_labels", "on_bad_row")
"""The options that decide which passages are asked about."""


@dataclass(frozen=True, kw_only=True)
class SimpleTextDataConfig(KeepingConfig):
    """What is read, and what stays.

    Args:
        eli5: posts with answers and scores (file or hub name), a raw dump's submissions, or Dolly's rows, which have no
            scores; null: none.
        comments: the raw dump's comments, where the answers are not in `eli5`.
        articles: Simple Wikipedia's (file or hub name), or lines of WikiText; null: none.
        filters: the bounds of every check.
        toxicity_model: a sequence classifier, by folder or hub name; null: nothing is left out for toxicity.
        toxicity_labels: its labels that mean toxic; empty: those with "toxic" in their name.
        embedding_model: a transformers encoder or sentence-transformers model, by folder or hub name; null: leakage is
            not looked for.
        question_model: the policy that writes questions (docs/policies.md); null: each article brings one.
        sampling: how questions are drawn.
        validation_share: share of the posts and articles held out for validation.
        test_share: share held out for the test.
        rows: posts and passages that are filtered at once.
        on_bad_row: refuse stops at a row that cannot be read, skip leaves it out and counts it.
        seed: of the split, the questions and the examples shown.
    """

    eli5: DataSource | None = None
    comments: DataSource | None = None
    articles: DataSource | None = None
    filters: FilterConfig = field(default_factory=FilterConfig)
    toxicity_model: LocalOrHubModel | None = None
    toxicity_labels: tuple[str, ...] = ()
    embedding_model: LocalOrHubModel | None = None
    question_model: AnsweringPolicy | None = None
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.7, max_new_tokens=64))
    validation_share: float = 0.02
    test_share: float = 0.02
    rows: int = 64
    on_bad_row: OnBadRow = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.eli5 is None and self.articles is None:
            raise InputError("eli5, articles: name at least one of them")
        if self.comments is not None and self.eli5 is None:
            raise InputError("comments: are answers to posts; name these with eli5")
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: must be 0 or above and below 1, got {getattr(self, name)}")
        if self.validation_share + self.test_share >= 1:
            raise InputError("validation_share, test_share: together they must leave rows to train on")
        if self.rows < 1:
            raise InputError(f"rows: must be at least 1, got {self.rows}")


def main(config: SimpleTextDataConfig) -> None:
    stage = open_stage(config, one_process=True)

    toxicity, embed = load_models(config)
    kept = kept_questions(config, stage)
    with stage.work(None, kept) as folder:
        record_data(stage, build(config, folder, toxicity, embed, question_writer(config, folder / kept.name)))


def build(
    config: SimpleTextDataConfig, folder: Path, toxicity: Toxicity | None, embed: Embed | None, ask: Ask | None
) -> dict[str, Any]:
    """Write the files of rows, and return their figures; a model that is not there is None."""
    started = time.perf_counter()
    given = {"eli5": config.eli5, "simple_wikipedia": config.articles}
    filters = {name: TextFilter(config.filters, toxicity, config.seed) for name, source in given.items() if source}
    log = {name: Log() for name in filters}
    dealer = Dealer(folder, embed, config.filters.max_similarity, config.seed)
    dealer.add(batches(candidates(config, folder, filters, log, ask), config.rows))
    rows, leakage = dealer.finish()
    if not rows:
        raise InputError("eli5, articles: no row is left; loosen the filters, or look at what they read")
    seconds = time.perf_counter() - started
    read = sum(entry.read for entry in log.values())
    return {
        "sources": {
            name: {"read": log[name].read, "bad_rows": dict(log[name].skipped), **filters[name].figures()}
            for name in filters
        },
        "rows": rows,
        "leakage": leakage,
        "models": {"toxicity": config.toxicity_model, "embedding": config.embedding_model},
        "seconds": round(seconds, 2),
        "rows_per_second": round(read / seconds, 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


@on_main_process
def record_data(stage: Stage, figures: dict[str, Any]) -> None:
    """Write the figures and their page, and show them."""
    stage.write_json("data.json", figures, shown=text_tables(figures))
    build_data_page(figures, stage.folder / "index.html", stage.output.name)


def candidates(
    config: SimpleTextDataConfig, folder: Path, filters: dict[str, TextFilter], log: dict[str, Log], ask: Ask | None
) -> Iterator[Candidate]:
    """Every filtered post and passage with its rows and the part it is dealt to: by the question, or by the article."""
    held_out = {"validation": config.validation_share, "test": config.test_share}
    shares = {"train": 1 - sum(held_out.values()), **held_out}
    if config.eli5 is not None:
        rows = source_rows(config.eli5)
        if config.comments is not None:
            rows = attach_comments(rows, source_rows(config.comments), folder / "comments.partial")
        posts = parsed(counted(rows, config.eli5), post_of, config.eli5, config.on_bad_row, log["eli5"])
        for post in filtered_posts(posts, filters["eli5"], config.rows):
            kind, made = rows_of_post(post)
            part = part_of(first_turn([{"role": "user", "content": post.question}]), shares, config.seed)
            yield Candidate(part, kind, post.question, made)
    if config.articles is not None:
        lines = joined_lines(source_rows(config.articles))
        articles = parsed(
            counted(lines, config.articles), article_of, config.articles, config.on_bad_row, log["simple_wikipedia"]
        )
        for passage in filtered_passages(articles, filters["simple_wikipedia"], ask, config.rows):
            part = part_of(passage.together, shares, config.seed)
            yield Candidate(part, "sft", passage.question, [row_of_passage(passage)])


def load_models(config: SimpleTextDataConfig) -> tuple[Toxicity | None, Embed | None]:
    """The toxicity classifier and the embedding model, None where none is named."""
    if config.toxicity_model is None and config.embedding_model is None:
        return None, None
    from rlhf.models.text_judges import Embedder, ToxicityClassifier

    toxicity = ToxicityClassifier(config.toxicity_model, config.toxicity_labels) if config.toxicity_model else None
    return toxicity, Embedder(config.embedding_model) if config.embedding_model else None


def kept_questions(config: SimpleTextDataConfig, stage: Stage) -> Kept:
    """The written questions, each under the number of those asked before it: what decides them and their order."""
    options, _ = options_of(config, stage.inputs)
    others = {name: value for name, value in options.items() if name.split(".")[0] in PASSAGES}
    read = [name for name in stage.inputs if name.split(".")[0] in PASSAGES]
    params = config.sampling.seeded(config.seed)
    return kept_samples((), 1, params, stage, "question_model", inputs=read, **others)


def question_writer(config: SimpleTextDataConfig, shards: Path) -> Ask | None:
    """The first answer of the question model to each prompt; None where none is named.

    Args:
        shards: folder in which the answers outlive a kill.
    """
    source = named(config.question_model)
    if config.articles is None or source is None:
        return None
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampler = open_sampler(source, device, field="question_model")
    params = config.sampling.seeded(config.seed)
    written = read_shards(shards)
    writer = ShardWriter(shards, 0)

    def ask(prompts: Sequence[Conversation], asked: int) -> list[str]:
        left = [key for key in range(asked, asked + len(prompts)) if key not in written]
        if left:
            drawn = sampler.sample([prompts[key - asked] for key in left], 1, params, keys=left)
            for key, samples in zip(left, drawn, strict=True):
                written[key] = samples
                writer.write(key, samples)
        return [written.pop(asked + i)[0].text for i in range(len(prompts))]

    return ask


if __name__ == "__main__":
    run_recipe(main, SimpleTextDataConfig)
