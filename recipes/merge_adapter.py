"""Merge an adapter into whole weights (the QLoRA report, section 4.1; decision 11), and show what the merge changed.

A QLoRA adapter was trained over 4-bit weights. Added to the base's own weights (`--merge simple`) or to the base
quantised and dequantised (`--merge careful`) it makes two models; the second is what training saw, up to rounding.
Which one answers better depends on the model, so both are measured: the norms of what quantisation and training each
changed in every layer, and on held-out dialogues the answers' loss and the KL from the model that was trained.

    python recipes/merge_adapter.py --checkpoint runs/my_sft/checkpoint --data heldout.jsonl --output runs/merged
    python recipes/merge_adapter.py --checkpoint runs/my_sft/checkpoint --merge simple --output runs/merged

Writes into the output folder: checkpoint/ (plain transformers loads it), merge.json.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rlhf.configuration import run_recipe
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_conversations
from rlhf.errors import InputError
from rlhf.evaluation.policies.merges import merge_report, report_lines
from rlhf.finetuning.config import FinetuningConfig
from rlhf.models.checkpoint.folder import require_policy_adapter
from rlhf.models.merging import layer_distances, merged_policy
from rlhf.models.policy import load_tokenizer, save_policy
from rlhf.stage import InputPath, StageConfig, open_stage


@dataclass(frozen=True, kw_only=True)
class MergeConfig(StageConfig):
    """Merge an adapter.

    Args:
        checkpoint: folder of a policy's adapter, as `sft.py` writes it.
        merge: what checkpoint/ holds: careful (base in 4 bit and back, plus the update), simple (base plus the update),
            or adapter (a copy of the adapter alone).
        data: held-out dialogues on which both merges are measured; null: only the norms by layer are.
        max_rows: measure on the first dialogues, this many.
        max_length: longest of these dialogues in tokens; longer ones are left out and counted.
        dtype: of the merged weights.
    """

    checkpoint: InputPath
    merge: Literal["careful", "simple", "adapter"] = "careful"
    data: DataSource | None = None
    max_rows: int = 500
    max_length: int = 4096
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")


def main(config: MergeConfig) -> None:
    stage = open_stage(config, one_process=True)
    require_policy_adapter(config.checkpoint, "simple" if config.merge == "adapter" else config.merge)
    dialogues = load_conversations(config.data)[: config.max_rows] if config.data else []

    with stage.work() as folder:
        report: dict[str, Any] = {"layers": [asdict(layer) for layer in layer_distances(config.checkpoint)]}
        if dialogues:
            settings = FinetuningConfig(max_length=config.max_length, on_bad_row="skip")
            report["heldout"] = merge_report(config.checkpoint, dialogues, settings, config.dtype)
        if config.merge == "adapter":
            shutil.copytree(config.checkpoint, folder / "checkpoint")
        else:
            merged = merged_policy(config.checkpoint, config.merge, config.dtype)
            save_policy(merged, load_tokenizer(config.checkpoint), folder / "checkpoint")
        stage.write_json("merge.json", report, shown="\n".join(report_lines(report)))


if __name__ == "__main__":
    run_recipe(main, MergeConfig)
