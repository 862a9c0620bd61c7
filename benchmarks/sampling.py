"""Best-of-K sampling: answers a second of ours and of transformers' `generate(num_return_sequences=K)`.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py [CHECKPOINT PROMPTS]

Same model, prompts, K and distribution; natural stops. Each side at its best batch size, which the benchmark finds.
Without arguments it takes the demo's SFT model and test prompts. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from rlhf.conversation import Renderer
from rlhf.data.loading import load_prompts
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage import require_files

K, PROMPTS, NEW_TOKENS = 16, 128, 64


def generate(model: torch.nn.Module, renderer: Renderer, rendered: list[list[int]], batch: int) -> int:
    """Answers drawn by transformers: left-padded batches of prompts of similar length."""
    drawn = 0
    ordered = sorted(rendered, key=len)
    for start in range(0, len(ordered), batch):
        rows = ordered[start : start + batch]
        width = max(map(len, rows))
        ids = torch.tensor([[renderer.pad_token_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=K,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=renderer.pad_token_id,
        )
        drawn += len(out)
    return drawn


def main() -> None:
    checkpoint, prompts = sys.argv[1:] or ("runs/demo/sft/checkpoint", "runs/demo/data/test_prompts.jsonl")
    require_files(checkpoint=checkpoint, prompts=prompts)
    model, renderer = load_policy(Path(checkpoint)).eval(), Renderer(load_tokenizer(checkpoint))
    messages = [prompt.messages for prompt in load_prompts(prompts)[:PROMPTS]]
    rendered = renderer.prompts(messages)
    rates: dict[str, dict[int, float]] = {"ours": {}, "generate": {}}
    for batch in (4, 8, 16, 32):  # prompts at once
        started = time.perf_counter()
        params = SamplingParams(max_new_tokens=NEW_TOKENS)
        answers = InProcessSampler(model, renderer, batch * K).sample(messages, K, params)
        rates["ours"][batch] = sum(map(len, answers)) / (time.perf_counter() - started)
        started = time.perf_counter()
        with torch.inference_mode():
            drawn = generate(model, renderer, rendered, batch)
        rates["generate"][batch] = drawn / (time.perf_counter() - started)
        print(f"{batch} prompts at once: ours {rates['ours'][batch]:.0f}/s, generate {rates['generate'][batch]:.0f}/s")
    ours, peer = (round(max(rates[side].values()), 1) for side in ("ours", "generate"))
    print(
        json.dumps(
            {"name": "sampling", "ours": ours, "peer": peer, "ratio": round(ours / peer, 2), "unit": "answers/s"}
        )
    )


if __name__ == "__main__":
    main()
