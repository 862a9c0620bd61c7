"""The driver of RLHF-V1..Vn: every stage in order, as processes, resumable (Llama 2 paper, sections 3.2.1-3.2.3).

Each version collects preferences from the newest models, trains both reward models, samples, selects with the pool of
all versions, fine-tunes from the same start, runs PPO where asked for, and is evaluated; then summary.json and the
report are written. The same command goes on after a kill: finished stages whose config and inputs are unchanged are not
run again.

    python recipes/iterative_rlhf.py --config recipes/configs/embedded/iterative_rlhf.yaml --run runs/demo --seed 0
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from rlhf.configuration import run_recipe, to_dict
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.driver import Driver, StageFailed
from rlhf.iteration.plan import make_plan
from rlhf.iteration.summary import write_summary


def main(config: IterativeConfig) -> None:
    for option in ("strict", "fresh"):
        if getattr(config, option):
            os.environ[f"RLHF_{option.upper()}"] = "true"  # for every stage: it changes nothing of a result
    stages = make_plan(config)
    check_plan(stages)
    try:
        Driver(stages, config.run, config.slots).execute(begin=partial(record_config, config))
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"figures: {write_summary(config.run, stages)}")
    from rlhf.report import build_report

    print(f"report:  {build_report(config.run)}")


def record_config(config: IterativeConfig) -> None:
    """Write the run's config.yaml: the resolved config, package versions and the git commit."""
    import yaml

    from rlhf.stage import package_versions

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    content = {"config": to_dict(config), "packages": package_versions(), "git_commit": commit or None}
    (config.run / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    run_recipe(main, IterativeConfig)
