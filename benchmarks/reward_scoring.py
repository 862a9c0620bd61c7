"""Scoring K answers per prompt: answers a second of ours and of transformers on padded batches sorted by length.

    OMP_NUM_THREADS=1 python benchmarks/reward_scoring.py [--model SmolLM2] [--prompts 24]

Same model (a Llama of 12.2M random weights, or `--model`, whose head is new), same rows of token ids: prompts evenly
spaced over HH's by length, each with K answers drawn from all of HH's. Each side at its best batch size, which the
benchmark finds; the sizes of both are tried in turn. Seconds are of processor time on one thread, on a GPU of the
wall's. The scores must agree. The last line is JSON, with ours' share of the matmul peak (benchmarks/peak.py), each
prompt counted once.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from peak import DEVICE, GPU, Arithmetic, clock, matmul_peak, parse, peak_share, run, unused_token
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
if GPU:
    OURS, PEER = (8192, 16384, 32768, 65536), (16, 32, 64, 128)
FURTHEST = 0.1 if GPU else 1e-4  # of equal scores: see `apart`


@torch.inference_mode()
def padded_scores(model: nn.Module, rows: list[list[int]], batch: int) -> Tensor:
    """(n,) scores by transformers' classifier; its pad token follows no row's end, so it finds the last token."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    scores = torch.zeros(len(rows))
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        ids, mask = (t.to(DEVICE) for t in pad_rows([rows[i] for i in some], model.config.pad_token_id))
        scores[some] = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float().cpu()
    return scores


def apart(ours: Tensor, theirs: Tensor) -> float:
    """How far scores are from each other: the most; on a GPU, which computes in bfloat16, the root of the mean square
    in standard deviations of the scores."""
    difference = ours - theirs
    return float(difference.square().mean().sqrt() / ours.std() if GPU else difference.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hh-rlhf"))
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--batches", type=int, default=len(OURS), help="how many of the batch sizes are tried")
    arguments = parse(parser, {"prompts": 2, "batches": 1})
    preferences, draw = hh_rows(arguments.data), random.Random(SEED)
    answers = [answer for row in preferences for answer in (row.chosen, row.rejected)]
    with tempfile.TemporaryDirectory() as folder:
        save_reward_model(preferences, Path(folder), arguments.model)
        arithmetic, matmul = Arithmetic.of(Path(folder, "policy")), matmul_peak()
        reward = load_reward(Path(folder, "reward"))
        assert isinstance(reward, RewardModelFunction)
        dtype = next(reward.model.parameters()).dtype
        model = from_pretrained(AutoModelForSequenceClassification, Path(folder, "reward"), dtype=dtype)
        model = model.to(DEVICE).eval()
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
    tokenizer = reward.renderer.tokenizer
    model.config.pad_token_id = tokenizer.convert_tokens_to_ids(unused_token(tokenizer, rows))
    for tokens, batch in list(zip(OURS, PEER, strict=True))[-arguments.batches :]:
        reward.batch_tokens = tokens
        if GPU:  # kernels are loaded and memory is taken, for the size
            reward.score_ids(rows, starts), padded_scores(model, rows, batch)
        started = clock()
        ours = reward.score_ids(rows, starts).score
        rates["ours"].append(len(rows) / (clock() - started))
        started = clock()
        theirs = padded_scores(model, rows, batch)
        rates["peer"].append(len(rows) / (clock() - started))
        print(
            f"ours, {tokens} tokens per batch: {rates['ours'][-1]:.1f}/s; transformers, {batch} rows per batch: "
            f"{rates['peer'][-1]:.1f}/s; difference of the scores {apart(ours, theirs):.1e}"
        )
        if not apart(ours, theirs) <= FURTHEST:
            raise SystemExit(f"reward_scoring: the scores differ by more than {FURTHEST}: not the same scoring")
    distinct = sum(map(len, rows)) - sum(starts) + sum(starts[::K])
    share = peak_share(arithmetic.forward(distinct), len(rows) / max(rates["ours"]), matmul)
    best, peer = (round(max(rates[side]), 2) for side in ("ours", "peer"))
    figures = {"ours": best, "peer": peer, "ratio": round(best / peer, 2), "unit": "answers/s"}
    print(json.dumps({"name": "reward_scoring", **figures, **share}))


if __name__ == "__main__":
    run(main)
