"""A plan, run from one end to the other: the driver, the summary, the report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import yaml

from rlhf.configuration import to_dict
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.driver import Driver, StageFailed
from rlhf.iteration.keeping import Best, best_policy
from rlhf.iteration.ledger import Record
from rlhf.iteration.plan import make_plan
from rlhf.iteration.summary import RECORD, write_summary
from rlhf.metrics import asked_trackers
from rlhf.models.checkpoint.folder import base_quantization, is_adapter_checkpoint
from rlhf.shipped import ROOT
from rlhf.stage import package_versions
from rlhf.start.calibrate import calibrated, kept
from rlhf.start.times import plan_forecast
from rlhf.terminal import RED, painted


def run_plan(config: IterativeConfig) -> None:
    """Run what has to run, write summary.json and the report; goes on where an earlier call was stopped.

    Raises:
        InputError: the plan or a stage's settings are wrong; nothing was started.
        SystemExit: 1 where a stage failed, 130 where the user stopped it.
    """
    for option in ("strict", "fresh"):
        if getattr(config, option):
            os.environ[f"RLHF_{option.upper()}"] = "true"  # for every stage: it changes nothing of a result
    if config.trackers:
        os.environ["RLHF_TRACKERS"] = ",".join(asked_trackers(config.trackers))
    stages = make_plan(config)
    settings = check_plan(stages)
    calibration = calibrated(config) if (config.run / "plan.yaml").is_file() else kept(config)

    def left(records: Sequence[Record]) -> float | None:
        found = plan_forecast(config, stages, settings, calibration, records)
        return None if found.unknown else found.left

    try:
        driver = Driver(
            stages,
            config.run,
            config.slots,
            stalled_minutes=config.stalled_minutes,
            end_stalled=config.end_stalled,
            keep=config.keep,
            left=left,
            quiet=config.quiet,
        )
        driver.execute(begin=partial(record_config, config))
    except StageFailed as error:
        print(f"{painted('error:', RED, sys.stderr)} {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"figures: {write_summary(config.run, stages)}")

    from rlhf.report import build_report

    print(f"report:  {build_report(config.run)}")
    if (best := best_policy(stages, [stage.name for stage in stages])) is not None:
        print(f"best:    {_best_words(best)}")


def _best_words(best: Best) -> str:
    """Which policy to take, and how it becomes a model that other programs load."""
    between = "" if best.interval is None else " ({:.1f} to {:.1f})".format(*(100 * end for end in best.interval))
    said = f"{best.checkpoint}: of {best.policies} policies it won most against the start, {100 * best.win_rate:.1f} %"
    said += between
    if not is_adapter_checkpoint(best.checkpoint):
        return said
    whole = f"rlhf recipe run merge_adapter --checkpoint {best.checkpoint} --output {best.checkpoint.parent / 'merged'}"
    whole += "" if base_quantization(best.checkpoint) else " --merge simple"
    return f"{said}; an adapter, which `{whole}` makes whole weights"


def record_config(config: IterativeConfig) -> None:
    """Write the run's config.yaml: the resolved config, package versions and, of a checkout, the git commit."""
    content = {"config": to_dict(config), "packages": package_versions(), "git_commit": _commit()}
    (config.run / RECORD).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _commit() -> str | None:
    if not (ROOT / ".git").exists():  # installed, perhaps below somebody else's repository
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or None
