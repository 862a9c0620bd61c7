"""Which stages are started again after a failure, how often, and when."""

from __future__ import annotations

import time

from rlhf.iteration.plan import PlannedStage


class Retries:
    """Counts the starts after failures of one driver's stages.

    tried: stage -> how often it was started again. pending: those that failed -> the time from which they may start.
    """

    def __init__(self) -> None:
        self.tried: dict[str, int] = {}
        self.pending: dict[str, float] = {}

    def next(self, stage: PlannedStage) -> float | None:
        """Seconds until the stage, which failed just now, is started again; None: it has been often enough."""
        tried = self.tried.get(stage.name, 0)
        if tried >= stage.launch.retries:
            return None
        self.tried[stage.name] = tried + 1
        seconds: float = stage.launch.retry_seconds * 2**tried
        self.pending[stage.name] = time.monotonic() + seconds
        return seconds

    def waits(self, name: str) -> bool:
        """Whether a stage that failed has to wait still."""
        return self.pending.get(name, 0.0) > time.monotonic()
