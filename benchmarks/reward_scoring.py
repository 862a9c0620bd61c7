"""Scoring K answers per prompt: answers a second of ours and of transformers on padded batches sorted by length.

    OMP_NUM_THREADS=1 python benchmarks/reward_scoring.py [--data ../shared/data/hh-rlhf] [--prompts 24]

Same model (a Llama of 12.2M random weights), same rows of token ids: prompts evenly spaced over HH's by length, each
with K answers drawn from all of HH's. Each side at its best batch size, which the benchmark finds; the sizes of both
are tried in turn. Seconds are of processor time on one thread. The scores must agree. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from reward_training import SEED, hh_rows, save_reward_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rlhf.conversation import Renderer
from rlhf.models.batching import pad_rows
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.rewards.loading import load_reward
from rlhf.rewards.scoring import RewardModelFunction

K = 16
OURS, PEER = (1024, 1536, 2048, 4096), (1, 4, 8, 16)  # tokens of a batch; rows of a batch


@torch.inference_mode()
def padded_scores(model: nn.Module, rows: list[list[int]], batch: int) -> Tensor:
    """(n,) scores by transformers' classifier; its pad token follows no row's end, so it finds the last token."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    scores = torch.zeros(len(rows))
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        ids, mask = pad_rows([rows[i] for i in some], model.config.pad_token_id)
        scores[some] = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hh-rlhf"))
    parser.add_argument("--prompts", type=int, default=24)
    arguments = parser.parse_args()
    preferences, draw = hh_rows(arguments.data), random.Random(SEED)
    answers = [answer for row in preferences for answer in (row.chosen, row.rejected)]
    with tempfile.TemporaryDirectory() as folder:
        save_reward_model(preferences, Path(folder))
        reward = load_reward(Path(folder, "reward"))
        model = from_pretrained(AutoModelForSequenceClassification, Path(folder, "reward")).eval()
    assert isinstance(reward, RewardModelFunction)
    renderer = Renderer(reward.renderer.tokenizer)
    lengths = map(len, renderer.prompts([row.messages for row in preferences]))
    by_length = [row for _, row in sorted(zip(lengths, preferences, strict=True), key=lambda pair: pair[0])]
    evenly = [by_length[(2 * i + 1) * len(by_length) // (2 * arguments.prompts)] for i in range(arguments.prompts)]
    rendered = renderer.dialogues(
        [[*row.messages, {"role": "assistant", "content": a}] for row in evenly for a in draw.sample(answers, K)],
        train="last",
    )
    rows, starts = [r.input_ids for r in rendered], [r.loss_mask.index(True) for r in rendered]
    print(
        f"{len(rows)} rows: prompts of {sum(starts) / len(rows):.0f} tokens, answers of "
        f"{(sum(map(len, rows)) - sum(starts)) / len(rows):.0f}, on average"
    )
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for tokens, batch in zip(OURS, PEER, strict=True):
        reward.batch_tokens = tokens
        started = time.process_time()
        ours = reward.score_ids(rows, starts).score
        rates["ours"].append(len(rows) / (time.process_time() - started))
        started = time.process_time()
        theirs = padded_scores(model, rows, batch)
        rates["peer"].append(len(rows) / (time.process_time() - started))
        print(
            f"ours, {tokens} tokens per batch: {rates['ours'][-1]:.1f}/s; transformers, {batch} rows per batch: "
            f"{rates['peer'][-1]:.1f}/s; largest difference of the scores {(ours - theirs).abs().max():.1e}"
        )
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    best, peer = (round(max(rates[side]), 1) for side in ("ours", "peer"))
    print(
        json.dumps(
            {"name": "reward_scoring", "ours": best, "peer": peer, "ratio": round(best / peer, 2), "unit": "answers/s"}
        )
    )


if __name__ == "__main__":
    main()
