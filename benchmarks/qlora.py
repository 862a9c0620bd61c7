"""Full fine-tuning, LoRA and QLoRA of a real pretrained Llama side by side, and the two merges of the QLoRA adapter.

    OMP_NUM_THREADS=1 python benchmarks/qlora.py [--data ../shared/data] [--epochs 2]

stories260K (260,032 parameters, trained on TinyStories) learns to answer Dolly's and Open Assistant's questions; a
fifth of the dialogues is held out, by first turn. The adapter is the QLoRA report's (rank 64, alpha 16, dropout 0.1);
one rate for all three methods. Printed for each method: the held-out loss a token of the answers before and after;
then what `recipes/merge_adapter.py` reports of the QLoRA adapter. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rlhf.conversation import LLAMA2_CHAT_TEMPLATE, Conversation
from rlhf.data.loading import load_conversations
from rlhf.data.splitting import split_by_first_turn
from rlhf.errors import InputError
from rlhf.evaluation.policies.merges import merge_report, report_lines
from rlhf.finetuning.config import FinetuningConfig
from rlhf.finetuning.supervised import finetune, heldout_loss, render_rows, training_renderer
from rlhf.metrics import MetricsLog
from rlhf.models.config import AdapterConfig
from rlhf.models.merging import layer_distances
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"adapter": AdapterConfig(merge=False)},
    "QLoRA": {"adapter": AdapterConfig(merge=False), "quantization": "nf4"},
}
SEED = 0


def dialogues(data: Path) -> dict[str, list[Conversation]]:
    """Dolly's rows and the best path of each Open Assistant tree, in the parts train and heldout."""
    files = [data / "dolly/dolly_387.jsonl", data / "oasst/en_100_tree.jsonl"]
    for file in [*files, data / "stories260K/config.json"]:
        if not file.is_file():
            raise InputError(f"data: there is no {file}; name the folder of the shared data with --data")
    rows = [row for file in files for row in load_conversations(file, on_bad_row="skip")]
    return split_by_first_turn(rows, {"train": 0.8, "heldout": 0.2}, SEED, key=lambda messages: messages)


def train(method: str, start: Path, parts: dict[str, list[Conversation]], epochs: int, folder: Path) -> dict[str, Any]:
    """Held-out loss before and after; the checkpoint is written into `folder`."""
    accelerator = make_accelerator(seed=SEED)
    policy, tokenizer = load_policy(start, **METHODS[method]), load_tokenizer(start)
    optimizer = OptimizerConfig(learning_rate=5e-3, epochs=epochs, batch_size=16, micro_batch_size=8)
    config = FinetuningConfig(on_bad_row="skip", optimizer=optimizer)
    renderer = training_renderer(tokenizer, policy, config)
    heldout = render_rows(renderer, parts["heldout"], config, "held-out")
    before = heldout_loss(policy, heldout, renderer.pad_token_id)
    log = MetricsLog(folder, accelerator)
    finetune(policy, renderer, parts["train"], config, accelerator, log, SEED, name=method)
    save_policy(policy, tokenizer, folder / "checkpoint", accelerator, merge=False)
    after = heldout_loss(policy, heldout, renderer.pad_token_id)
    return {"before": before, "after": after, "trained": sum(p.numel() for p in policy.parameters() if p.requires_grad)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = dialogues(arguments.data)
    with tempfile.TemporaryDirectory() as name:
        start = Path(name) / "start"
        tokenizer = load_tokenizer(arguments.data / "stories260K")
        tokenizer.chat_template = LLAMA2_CHAT_TEMPLATE
        save_policy(load_policy(arguments.data / "stories260K"), tokenizer, start)
        results = {m: train(m, start, parts, arguments.epochs, Path(name) / m) for m in METHODS}
        print(f"{'method':<8}{'trained weights':>17}{'before':>10}{'after':>10}{'fall':>9}")
        for method, result in results.items():
            fall = 1 - result["after"] / result["before"]
            print(f"{method:<8}{result['trained']:>17,}{result['before']:>10.4f}{result['after']:>10.4f}{fall:>9.1%}")
        print(f"QLoRA after LoRA: {results['QLoRA']['after'] / results['LoRA']['after'] - 1:+.2%}")
        checkpoint = Path(name) / "QLoRA/checkpoint"
        report: dict[str, Any] = {"layers": [asdict(layer) for layer in layer_distances(checkpoint)]}
        report["heldout"] = merge_report(checkpoint, parts["heldout"], FinetuningConfig(on_bad_row="skip"), "bfloat16")
        print("\n".join(report_lines(report)))
        print(json.dumps({"methods": results, "merges": report["heldout"]}))


if __name__ == "__main__":
    main()
