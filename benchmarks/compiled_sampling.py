"""Whether compiled steps pay: tokens a second of sampling as it is, and with `compile`, at some batch sizes.

    OMP_NUM_THREADS=1 python benchmarks/compiled_sampling.py [--checkpoint runs/demo/sft/checkpoint] [--sizes 64 512]

The SFT model of `make demo` (or `--random`: a Llama of 17M random weights with its tokenizer) answers the demo's
prompts, K = 16. Both draw the same tokens, counted. The first compiled call compiles and is not counted; its seconds
are printed. The clock is this process's CPU time, on a GPU the wall's. The last line is JSON: the best sizes compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from peak import DEVICE, clock
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.conversation import Renderer
from rlhf.data.loading import load_prompts
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.paths import require_files
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import Sample, SamplingParams

K = 16
RANDOM = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/demo/sft/checkpoint"))
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data/prompts.jsonl"))
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512])
    arguments = parser.parse_args()
    require_files(checkpoint=arguments.checkpoint, data=arguments.data)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**RANDOM)) if arguments.random else load_policy(arguments.checkpoint)
    model = model.to(DEVICE).eval()
    renderer = Renderer(load_tokenizer(arguments.checkpoint))
    prompts = [prompt.messages for prompt in load_prompts(arguments.data)[: arguments.prompts]]
    params = SamplingParams(max_new_tokens=arguments.new_tokens)

    def timed(sampler: InProcessSampler) -> tuple[list[Sample], float]:
        started = clock()
        drawn = sampler.sample(prompts, K, params)
        return [sample for samples in drawn for sample in samples], clock() - started

    rates: dict[bool, list[float]] = {False: [], True: []}
    for size in arguments.sizes:
        compiled = InProcessSampler(model, renderer, size, compile=True)
        _, first = timed(compiled)
        (plain, seconds), (others, compiled_seconds) = timed(InProcessSampler(model, renderer, size)), timed(compiled)
        tokens = sum(len(sample.token_ids) for sample in plain)
        same = sum(a.token_ids == b.token_ids for a, b in zip(plain, others, strict=True))
        rates[False].append(tokens / seconds)
        rates[True].append(tokens / compiled_seconds)
        print(
            f"{size} rows: {rates[False][-1]:.0f} tokens/s, compiled {rates[True][-1]:.0f}; the first compiled call "
            f"took {first:.0f} s; {same} of {len(plain)} answers are the same",
            flush=True,
        )
    ours, peer = max(rates[True]), max(rates[False])
    figures = {"ours": round(ours), "peer": round(peer), "ratio": round(ours / peer, 2)}
    print(json.dumps({"name": "compiled sampling", **figures, "unit": "tokens/s; the peer is ours, not compiled"}))


if __name__ == "__main__":
    main()
