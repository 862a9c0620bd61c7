"""What the config of every stage has whose answers two reward models score. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf.models.checkpoint.context import RoomConfig
from rlhf.rewards.config import GateConfig
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.specs import Reward
from rlhf.stage import StageConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class GatedConfig(RoomConfig, StageConfig):
    """Two rewards and the gate between them (`rlhf.rewards.gate.GatedReward`).

    Args:
        helpfulness: reward-model folder, `package.module:attribute` of your own reward function, or the YAML file of an
            ensemble of them.
        safety: the same for safety; null: helpfulness alone is the reward, and there is no gate.
        gate: when the safety score counts in place of the helpfulness score.
    """

    helpfulness: Reward
    safety: Reward | None = None
    gate: GateConfig = field(default_factory=GateConfig)

    @property
    def reward_name(self) -> str:
        """What scored an answer, kept beside its scores."""
        return str(self.helpfulness) if self.safety is None else f"{self.helpfulness} & {self.safety}"

    def load_rewards(self, accelerator: Accelerator | None) -> GatedReward:
        """Both rewards and the gate between them; see `GatedReward.load`."""
        options: dict[str, Any] = {"too_long": self.too_long, "accelerator": accelerator}
        return GatedReward.load(self.helpfulness, self.safety, self.gate, **options)
