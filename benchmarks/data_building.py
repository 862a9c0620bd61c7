"""Simple, safe text from many posts: rows a second, and the peak memory of the process.

    OMP_NUM_THREADS=1 python benchmarks/data_building.py [--rows 100000] [--peer_rows 5000]

Made-up posts of Reddit's form (one to three answers, on average 90 words; one question in fifty is a near-copy of
another) go through recipes/data/simple_text_data.py: read, cleaned, filtered, split, leakage removed, written. The
embeddings are made of hashed words by this file, 64 wide, and toxicity is a table of made-up words: neither a
model's time nor its memory is in it. The peer takes the same rows through `datasets` (map and filter, one
process) with textstat's readability, and does no clean-up, no split and no leakage. Seconds are of processor time on
one thread. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.jsonl import write_rows
from rlhf.stage import peak_memory_mb

VOCABULARY = 30_000  # made-up words, drawn by Zipf's law
NOISE = ("", "", "", " Edit: ok!", "\n\n> you said so\n", " See [here](https://example.org/a).", " **really**", " \t ")
TOXIC = 400  # the rank of a word that stands for a toxic one
WIDTH = 64
ROOT = Path(__file__).resolve().parents[1]


def vocabulary() -> tuple[list[str], list[float]]:
    """Words of one to three syllables, the frequent ones shorter, and their cumulative weights."""
    draw = random.Random(0)
    words = [
        "".join(draw.choice("bcdfghklmnprstvw") + draw.choice("aeiou") for _ in range(1 + rank.bit_length() // 7))
        + draw.choice(("", "n", "s", "t"))
        for rank in range(1, VOCABULARY + 1)
    ]
    return words, list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))


WORDS, WEIGHTS = vocabulary()


def sentence(draw: random.Random, low: int, high: int) -> str:
    return " ".join(draw.choices(WORDS, cum_weights=WEIGHTS, k=draw.randint(low, high))).capitalize()


def made_up_posts(rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    draw, question = random.Random(seed), ""
    sentences = [f"{sentence(draw, 6, 16)}. " for _ in range(min(rows, 50_000))]
    for number in range(rows):
        question = f"{question} again" if number % 50 == 49 else f"ELI5: {sentence(draw, 8, 14)} {number}?"
        answers = [
            {
                "text": draw.choice(NOISE).join(draw.choices(sentences, k=draw.randint(1, 15))),
                "score": draw.randint(1, 30),
            }
            for _ in range(draw.randint(1, 3))
        ]
        yield {"id": f"p{number}", "title": question, "selftext": "", "answers": answers}


class HashedWords:
    """Embeddings: the sum of a random vector for each word."""

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).normal(size=(1 << 16, WIDTH)).astype(np.float32)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.table[[zlib.crc32(w.encode()) & 0xFFFF for w in t.split()]].sum(axis=0) for t in texts])


def toxicity(texts: Sequence[str]) -> list[float]:
    return [float(WORDS[TOXIC] in text) for text in texts]


def ours(file: Path, folder: Path) -> tuple[dict[str, Any], float]:
    """The figures of the recipe, and its seconds."""
    spec = importlib.util.spec_from_file_location("simple_text_data", ROOT / "recipes" / "data" / "simple_text_data.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    config = recipe.SimpleTextDataConfig(output=folder, eli5=str(file), filters=recipe.FilterConfig(max_similarity=0.9))
    started = time.process_time()
    figures = recipe.build(config, folder, toxicity, HashedWords(), None)
    return figures, time.process_time() - started


def peer(file: Path, cache: Path) -> float:
    """Seconds of `datasets` with textstat for the same checks of every answer."""
    import datasets
    import textstat
    from textstat.backend.counts import _count_syllables

    _count_syllables.get_cmudict = lambda lang: None  # pyphen, as ours; the dictionary would be downloaded
    datasets.disable_progress_bars()
    started = time.process_time()

    def kept(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "answers": [
                answer
                for answer in row["answers"]
                if answer["score"] >= 4
                and textstat.lexicon_count(answer["text"]) >= 20
                and textstat.flesch_reading_ease(answer["text"]) >= 60
                and textstat.flesch_kincaid_grade(answer["text"]) < 9
            ]
        }

    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache)).map(kept)
    rows.filter(lambda row: len(row["answers"]) > 0).to_json(cache / "kept.jsonl")
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--peer_rows", type=int, default=5_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "posts.jsonl", made_up_posts(arguments.rows))
        figures, seconds = ours(folder / "posts.jsonl", folder)
        peak = peak_memory_mb()
        print(f"steps: {json.dumps({s['name']: [s['in'], s['out']] for s in figures['sources']['eli5']['steps']})}")
        print(f"leakage: {json.dumps({k: [v['in'], v['out']] for k, v in figures['leakage']['parts'].items()})}")
        print(f"rows: {json.dumps(figures['rows'])}")
        print(
            f"{arguments.rows:,} posts in {seconds:.0f} s of processor time ({figures['seconds']:.0f} s on the clock): "
            f"{arguments.rows / seconds:,.0f} rows/s, peak memory {peak:,.0f} MiB"
        )
        write_rows(folder / "some.jsonl", made_up_posts(arguments.peer_rows))
        theirs = arguments.peer_rows / peer(folder / "some.jsonl", folder / "cache")
        print(f"datasets and textstat: {theirs:,.0f} rows/s")
    rate = arguments.rows / seconds
    result = {"name": "data_building", "ours": round(rate), "peer": round(theirs), "ratio": round(rate / theirs, 2)}
    print(json.dumps({**result, "unit": "rows/s", "peak_memory_mb": round(peak)}))


if __name__ == "__main__":
    main()
