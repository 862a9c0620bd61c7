"""The driver of RLHF-V1..Vn: every stage in order, as processes, resumable (Llama 2 paper, sections 3.2.1-3.2.3).

Each version collects preferences from the newest models, trains both reward models, samples, selects with the pool of
all versions, fine-tunes from the same start, runs PPO where asked for, and is evaluated; then summary.json and the
report are written. The same command goes on after a kill: finished stages whose config and inputs are unchanged are not
run again.

    python recipes/iterative_rlhf.py --config recipes/configs/embedded/iterative_rlhf.yaml --run runs/demo --seed 0
"""

from __future__ import annotations

from rlhf.configuration import run_recipe
from rlhf.iteration.config import IterativeConfig
from rlhf.start.run import run_plan


def main(config: IterativeConfig) -> None:
    run_plan(config)


if __name__ == "__main__":
    run_recipe(main, IterativeConfig)
