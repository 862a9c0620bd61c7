"""The leaderboard's tasks: questions a second of ours, whose choices share their context, and of lm-eval by itself.

    OMP_NUM_THREADS=1 python benchmarks/leaderboard.py --model SmolLM2 [--limit 8] [--tasks arc truthfulqa]

Same model, questions, examples before them, and choices at once; the scores must agree. Seconds are of processor time
on one thread, on a GPU of the wall's, with what the harness does around the model. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import torch
from peak import DEVICE, clock, parse, run

from rlhf.evaluation.benchmarks import choices
from rlhf.evaluation.benchmarks.leaderboard import load_as_saved, run_task, write_local_task
from rlhf.models.packing import enable_packing
from rlhf.sampling.source import PolicySource

DATA = Path("../shared/data")
FILES = {
    "arc": DATA / "arc/ARC-Challenge-Dev.jsonl",
    "mmlu": DATA / "mmlu_dev",
    "truthfulqa": DATA / "truthfulqa/mc_task_400.json",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(FILES), default=["arc", "truthfulqa"])
    parser.add_argument("--limit", type=int, default=8, help="questions of a task (of MMLU: of a subject)")
    parser.add_argument("--rows", type=int, default=8, help="choices at once")
    arguments = parse(parser, {"limit": 2, "tasks": ["arc"]})
    missing = [str(FILES[task]) for task in arguments.tasks if not FILES[task].exists()]
    if missing or arguments.model is None:
        print(f"skipped: {missing[0]} is not there" if missing else "skipped: name a model with --model")
        return
    logging.disable(logging.WARNING)
    model, tokenizer = load_as_saved(PolicySource(checkpoint=arguments.model), torch.device(DEVICE))
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.tasks:
            local = write_local_task(task, FILES[task], Path(folder))
            seconds, scores = {}, {}
            for side, packs in (("lm-eval", lambda _: False), ("ours", enable_packing)):
                choices.enable_packing = packs  # type: ignore[assignment]
                start = clock()
                score = run_task(
                    model,
                    tokenizer,
                    task,
                    local=local,
                    tasks_folder=Path(folder),
                    limit=arguments.limit,
                    rows=arguments.rows,
                )
                seconds[side], scores[side] = clock() - start, score.score
                print(
                    f"{task}: {side} {score.questions / seconds[side]:.3f} questions/s, {score.score:.4f}", flush=True
                )
            if abs(scores["ours"] - scores["lm-eval"]) > 1e-4:
                raise SystemExit(f"{task}: the scores are not the same")
            figures[task] = {side: round(taken, 1) for side, taken in seconds.items()}
            figures[task]["ratio"] = round(seconds["lm-eval"] / seconds["ours"], 2)
    print(json.dumps({"name": "leaderboard", "unit": "seconds", **figures}))


if __name__ == "__main__":
    run(main)
