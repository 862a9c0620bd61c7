"""Settings of the safety gate. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from rlhf.errors import InputError
from rlhf.jsonl import read_json
from rlhf.paths import require_files


class SweepFile:
    """A field that names a gate_sweep.json, in a `GateConfig`; see `rlhf.stage.fields.InputCheck`."""

    def inputs(self, field: str, value: Any, config: GateConfig) -> Mapping[str, Path]:
        """The file, checked (`GateConfig.resolved_threshold`)."""
        config.resolved_threshold()
        return {field: Path(value)}


@dataclass(frozen=True)
class GateConfig:
    """The safety gate, wherever two reward models become one reward (Llama 2 paper, section 3.2.3).

    Args:
        threshold: a safety score below this, after the sigmoid, hands the answer's reward to the safety model.
        threshold_from: gate_sweep.json of recipes/studies/gate_sweep.py: the threshold it chose instead.
        centre: take each reward model's stored origin off its scores first (score_origin.json, which reward training
            measures): the ranking loss leaves scores free up to a constant, so that the sigmoid alone says nothing.
    """

    threshold: float = 0.15
    threshold_from: Annotated[Path, SweepFile()] | None = None
    centre: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise InputError(f"gate.threshold: must lie between 0 and 1, got {self.threshold}")
        if self.threshold_from is not None and self.threshold != type(self).threshold:
            raise InputError(
                f"gate.threshold: {self.threshold} stands beside gate.threshold_from; leave one of the two out"
            )

    def require_safety(self, safety: object) -> None:
        """InputError where something is set for a gate that has no safety scores to read: it would be ignored."""
        if safety is None and self != type(self)():
            name = next(f.name for f in fields(self) if getattr(self, f.name) != f.default)
            raise InputError(
                f"gate.{name}: there is no safety model whose scores the gate could read; name one with safety, or "
                f"leave gate.{name} out"
            )

    def inputs(self) -> dict[str, Path]:
        """Option -> file that a stage reads for its gate, checked; empty where there is none.

        Raises:
            InputError: as `resolved_threshold`.
        """
        self.resolved_threshold()
        return {} if self.threshold_from is None else {"gate.threshold_from": self.threshold_from}

    def resolved_threshold(self) -> float:
        """The threshold, or the one that the sweep chose.

        Raises:
            InputError: the file is not there, is no gate_sweep.json, or its scores were centred otherwise.
        """
        return self.threshold if self.threshold_from is None else self._swept(self.threshold_from)[0]

    def swept_origin(self) -> float | None:
        """The safety model's origin when the threshold was chosen; None where no sweep chose it, or it says none.

        Raises:
            InputError: as `resolved_threshold`.
        """
        return None if self.threshold_from is None else self._swept(self.threshold_from)[1]

    def _swept(self, file: Path) -> tuple[float, float | None]:
        """Threshold and origin of a sweep's file."""
        require_files(**{"gate.threshold_from": file})
        try:
            found = read_json(file)
            threshold, centred = float(found["chosen"]["threshold"]), found["centre"]
            origin = found.get("origins", {}).get("safety")
            origin = None if origin is None else float(origin)
            if not 0 < threshold < 1:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"gate.threshold_from: {file} is no gate_sweep.json of recipes/studies/gate_sweep.py; name one, or none"
            ) from None
        if centred != self.centre:
            raise InputError(f"gate.centre: the threshold of {file} was chosen with centre {centred}; set it so here")
        return threshold, origin
