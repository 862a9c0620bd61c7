"""Preferences at the paper's size: seconds until they are tokenized and ready, and the memory of a process that trains.

    OMP_NUM_THREADS=1 python benchmarks/preference_data.py [--pairs 20000] [--model runs/smollm2]

Made-up pairs of about 220 tokens (words of the model's own vocabulary, drawn by Zipf's law) go through what the stage
of a reward model does with its file: read, checked, rendered, tokenized, written (`write_reward_rows`), by all cores.
Beside it stand the seconds that the tokenizer alone takes for the same dialogues on the same cores, by its own threads,
without making lists of its ids. A process then opens the file as each rank does, mixes, and takes an epoch's batches.

Memory is what a process has of its own; pages of the mapped file are shared by all and may be dropped at any time.
It is measured for a tenth of the pairs too, and grown to 1.4 million by that. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from rlhf.data.cores import TOKENIZERS_THREADS, usable_cores
from rlhf.jsonl import write_rows
from rlhf.models.policy import load_tokenizer

Result = TypeVar("Result")
PAPER = 1_400_000
BATCH = 512
WORDS_OF_A_PROMPT, WORDS_OF_AN_ANSWER = 36, 40


def made_up_pairs(count: int, model: Path) -> Iterator[dict[str, Any]]:
    """Rows of one question and two answers."""
    draw = random.Random(0)
    vocabulary = sorted(load_tokenizer(model).get_vocab().items(), key=lambda entry: entry[1])
    words = [token[1:] for token, _ in vocabulary if len(token) > 2 and token[0] in "Ġ▁" and token[1:].isalpha()]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def text(mean: int) -> str:
        return " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(mean // 2, mean * 3 // 2)))

    for number in range(count):
        ask = [{"role": "user", "content": text(WORDS_OF_A_PROMPT)}]
        answers = {name: f"{text(WORDS_OF_AN_ANSWER)} {name}" for name in ("chosen", "rejected")}
        yield {"id": f"p{number}", "messages": ask, **answers, "strength": "better", "domain": "helpfulness"}


def own_memory() -> float:
    """MB that this process shares with no other and with no file."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) / 1024 for line in stream if line.startswith("RssAnon"))


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """[MB before, the most in the block], the second once it has ended."""
    found, done = [own_memory()], threading.Event()
    most = [found[0]]

    def watch() -> None:
        while not done.wait(0.01):
            most.append(max(most.pop(), own_memory()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found += most


def write(rows: Path, folder: Path, model: Path) -> dict[str, float]:
    """Our seconds, on the clock and of processors."""
    from rlhf.rewards.training.config import RewardTrainingConfig
    from rlhf.rewards.training.tokenized import Tokenizing, write_reward_rows

    tokenizing = Tokenizing(model, RewardTrainingConfig())
    assert tokenizing.renderer is not None  # loaded before the clock runs
    folder.mkdir()
    started, used = time.perf_counter(), processor_seconds()
    write_reward_rows(folder, tokenizing, "helpfulness", [rows], [], [])
    seconds, used = time.perf_counter() - started, processor_seconds() - used
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "processor": used, "reader_mb": peaks[0], "worker_mb": peaks[1]}


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def tokenizer_alone(folder: Path, model: Path) -> dict[str, float]:
    """Its seconds for the same dialogues, and their tokens."""
    import os

    from rlhf.rewards.training.tokenized import open_reward_rows

    os.environ[TOKENIZERS_THREADS] = "true"
    pairs = open_reward_rows(folder, "helpfulness").own
    tokenizer = load_tokenizer(model)
    seconds = used = tokens = 0.0
    for start in range(0, len(pairs), 1000):
        sides = [side for pair in pairs[start : start + 1000] for side in (pair.chosen, pair.rejected)]
        texts = tokenizer.batch_decode(sides)
        began, before = time.perf_counter(), processor_seconds()
        found = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        seconds, used = seconds + time.perf_counter() - began, used + processor_seconds() - before
        tokens += sum(len(one) for one in found)
    return {"seconds": seconds, "processor": used, "tokens": tokens}


def rank(folder: Path, model: Path) -> dict[str, float]:
    """A process that trains, without its model: MB before it has any rows, and the most while it takes its batches."""
    from rlhf.rewards.training.config import RewardTrainingConfig
    from rlhf.rewards.training.mixture import make_mixture
    from rlhf.rewards.training.tokenized import open_reward_rows
    from rlhf.rewards.training.train import pair_task
    from rlhf.training.config import OptimizerConfig
    from rlhf.training.loop import steps_of

    task = pair_task(RewardTrainingConfig(), load_tokenizer(model).pad_token_id)
    tokens = 0
    with peak_memory() as memory:
        rows = open_reward_rows(folder, "helpfulness")
        mixture = make_mixture(rows, 0.0, seed=0)
        started = time.perf_counter()
        for step in steps_of(mixture.rows, OptimizerConfig(batch_size=BATCH, epochs=1), seed=0):
            for start in range(0, len(step), 16):
                task.collate(step[start : start + 16])
            tokens += sum(len(pair.chosen) + len(pair.rejected) for pair in step)
        seconds = time.perf_counter() - started
    return {"before": memory[0], "most": memory[1], "tokens": tokens, "seconds": seconds}


def alone(work: Callable[..., Result], *arguments: Any) -> Result:
    """In a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--model", type=Path, default=Path("runs/smollm2"))
    arguments = parser.parse_args()
    sizes = {"few": max(1, arguments.pairs // 10), "all": arguments.pairs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own, ranks = {}, {}
        for size, count in sizes.items():
            rows = folder / f"{size}.jsonl"
            write_rows(rows, made_up_pairs(count, arguments.model))
            own[size] = alone(write, rows, folder / size, arguments.model)
            ranks[size] = alone(rank, folder / size, arguments.model)
        disk = sum(file.stat().st_size for file in (folder / "all").iterdir()) / 2**20
        theirs = alone(tokenizer_alone, folder / "all", arguments.model)
    ours, training = own["all"], ranks["all"]
    growth = (training["most"] - ranks["few"]["most"]) / (sizes["all"] - sizes["few"])
    scale = PAPER / arguments.pairs
    result = {
        "name": "preference_data",
        "cores": usable_cores(),
        "pairs": arguments.pairs,
        "tokens": round(theirs["tokens"]),
        "seconds": round(ours["seconds"], 2),
        "tokenizer_seconds": round(theirs["seconds"], 2),
        "ratio": round(ours["seconds"] / theirs["seconds"], 2),
        "processor_ratio": round(ours["processor"] / theirs["processor"], 2),
        "rank_mb": round(training["most"]),
        "rank_mb_before": round(training["before"]),
        "reader_mb": round(ours["reader_mb"]),
        "worker_mb": round(ours["worker_mb"]),
        "file_mb": round(disk),
        "batch_milliseconds": round(1000 * training["seconds"] * BATCH / arguments.pairs, 1),
        "at_1.4M": {
            "seconds": round(scale * ours["seconds"]),
            "tokenizer_seconds": round(scale * theirs["seconds"]),
            "rank_mb": round(training["most"] + growth * (PAPER - arguments.pairs)),
            "file_mb": round(scale * disk),
        },
    }
    a_pair = theirs["tokens"] / arguments.pairs
    print(f"{a_pair:.0f} tokens a pair; processor seconds: {ours['processor']:.1f}, alone {theirs['processor']:.1f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
