"""Best-of-16 sampling: answers a second of ours, of transformers' `generate(num_return_sequences=16)`, of its
continuous batching (`generate_batch`), of vllm, compiled and not, and of llama.cpp.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py [--prompts 128]  # the SFT model of `make demo-hh`
    OMP_NUM_THREADS=1 python benchmarks/sampling.py --model SmolLM2 --temperature 0.7 --top-p 0.9
    OMP_NUM_THREADS=1 python benchmarks/sampling.py --model SmolLM2 --peers vllm vllm_eager  # after `make vllm`
    OMP_NUM_THREADS=1 python benchmarks/sampling.py --model SmolLM2 --peers llama.cpp --gguf FILE
    OMP_NUM_THREADS=1 python benchmarks/sampling.py --drawing  # only the draw of one token from the logits

Same model, same prompts, natural stops, temperature 1 or the one asked for; each peer at its best batch size, which is
searched on a quarter of the prompts (the faster one then gets all of them), ours at the one it chooses by itself. The
prompts are HH dialogues of 80 tokens and more that leave the model room to answer. On a CPU each side is two processes
of one thread, which share the prompts, and the clock is each process's CPU time: the seconds of an idle core, so that
other programs don't blur it. Of vllm one server of one thread has all prompts, started as `--policy.engine vllm` starts
it; all its processes' time counts, and two cores are taken to have twice its speed. Of llama.cpp it is `llama-server`,
with the same weights in a GGUF file (its `convert_hf_to_gguf.py --outtype f32` makes one). On a GPU each side is one
process, and the clock is the wall's; both compute in bfloat16.

Printed beside the speeds: whether both draw from the same distribution. Token frequencies by a chi-squared statistic
whose null distribution comes from exchanging answers to the same prompt (tokens of one answer are not independent);
mean log-probability at temperature 1 with its standard error. The last line is JSON, with ours' share of the matmul
peak (benchmarks/peak.py) of a thread, each prompt counted once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import torch
from peak import DEVICE, GPU, Arithmetic, clock, matmul_peak, parse, peak_share, run
from peers import llama_cpp
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from rlhf.conversation import Conversation, Renderer
from rlhf.data.loading import load_preferences
from rlhf.errors import InputError
from rlhf.models.checkpoint.context import Context
from rlhf.models.checkpoint.folder import require_checkpoint
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.sampling.decoding import drawing
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import EngineConfig, PolicySource
from rlhf.training.accelerator import frozen_dtype

K, SHORTEST, PROCESSES = 16, 80, 2
ENGINES: dict[str, dict[str, Any]] = {"vllm": {"enforce_eager": False}, "vllm_eager": {"enforce_eager": True}}
Answers = list[list[tuple[int, ...]]]  # K a prompt, in the prompts' order


class Sides:
    """The same prompts answered by each side; `size` is the rows at once."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer, params: SamplingParams) -> None:
        self.model, self.renderer, self.params = model, renderer, params
        self.ends = sorted(renderer.end_token_ids)
        self.options: dict[str, Any] = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_k": 0,
            "top_p": params.top_p,
            "num_return_sequences": K,
            "max_new_tokens": params.max_new_tokens,
            "pad_token_id": renderer.pad_token_id,
            "eos_token_id": self.ends,
        }

    def ours(self, prompts: list[Conversation], size: int | None) -> Answers:
        drawn = InProcessSampler(self.model, self.renderer, size).sample(prompts, K, self.params)
        return [[sample.token_ids for sample in samples] for samples in drawn]

    @torch.inference_mode()
    def generate(self, prompts: list[Conversation], size: int) -> Answers:
        rendered = self.renderer.prompts(prompts)
        order = sorted(range(len(rendered)), key=lambda p: len(rendered[p]))
        answers: Answers = [[] for _ in rendered]
        for first in range(0, len(order), size // K):
            some = order[first : first + size // K]
            width = max(len(rendered[p]) for p in some)
            ids = [[self.renderer.pad_token_id] * (width - len(rendered[p])) + rendered[p] for p in some]
            mask = [[0] * (width - len(rendered[p])) + [1] * len(rendered[p]) for p in some]
            tensors = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
            tensors = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
            for row, tokens in enumerate(self.model.generate(**tensors, **self.options)[:, width:].tolist()):
                answers[some[row // K]].append(self._until_end(tokens))
        return answers

    def continuous(self, prompts: list[Conversation], size: int) -> Answers:
        rendered = self.renderer.prompts(prompts)
        config = GenerationConfig(**self.options, use_cuda_graph=False)
        settings = {"max_batch_tokens": max(size, 512), "max_requests_per_batch": size, "num_blocks": size}
        attention = self.model.config._attn_implementation
        try:
            from transformers import ContinuousBatchingConfig

            chosen = ContinuousBatchingConfig(page_size=32, **settings) if self.model.device.type == "cpu" else None
            results = self.model.generate_batch(rendered, config, continuous_batching_config=chosen)
        finally:
            self.model.set_attn_implementation(attention)
        tokens = [self._until_end(result.generated_tokens) for result in results.values()]
        return [tokens[start : start + K] for start in range(0, len(tokens), K)]

    def _until_end(self, tokens: list[int]) -> tuple[int, ...]:
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens) - 1)
        return tuple(tokens[: end + 1])


@dataclass(frozen=True)
class Speed:
    """answers a second, of two idle cores or one GPU; tokens drawn, and seconds, of all processes together."""

    answers: float
    tokens: int
    seconds: float


def timed(draw: Callable[[list[Conversation], Any], Answers], prompts: list[Conversation], size: int | None) -> Speed:
    """How fast the prompts are answered; `size` is each process's."""

    def measured(some: list[Conversation]) -> Speed:
        started = clock()
        drawn = draw(some, size)
        seconds = clock() - started
        return Speed(sum(map(len, drawn)) / seconds, sum(len(a) for row in drawn for a in row), seconds)

    if GPU:
        return measured(prompts)
    fork = multiprocessing.get_context("fork")
    speeds = fork.SimpleQueue()

    def share(first: int) -> None:
        speeds.put(measured(prompts[first::PROCESSES]))

    processes = [fork.Process(target=share, args=(first,)) for first in range(min(PROCESSES, len(prompts)))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a process of the benchmark failed")
    found = [speeds.get() for _ in processes]
    return Speed(sum(s.answers for s in found), sum(s.tokens for s in found), sum(s.seconds for s in found))


def spent(*processes: psutil.Process) -> float:
    """Seconds so far: of their processor time, on a GPU the wall's."""
    if GPU:
        return time.perf_counter()
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def timed_engine(
    checkpoint: Path, prompts: list[Conversation], params: SamplingParams, rows: int, options: dict[str, Any]
) -> Speed:
    """vllm's, of two cores; its start, and what it compiles then, do not count."""
    source = PolicySource(checkpoint=checkpoint, rows=rows, engine=EngineConfig(options=options))
    sampler = open_sampler(source, torch.device(DEVICE), field="policy")

    try:
        list(sampler.sample(prompts, 1, params))  # it starts, with room for the longest
        started = spent(*psutil.Process().children(recursive=True))
        drawn = sampler.sample(prompts, K, params)
        seconds = spent(*psutil.Process().children(recursive=True)) - started
    finally:
        sampler.close()
    answers = sum(map(len, drawn))
    tokens = sum(len(sample.token_ids) for samples in drawn for sample in samples)
    return Speed((1 if GPU else PROCESSES) * answers / seconds, tokens, seconds)


@torch.inference_mode()
def logprobs(model: PreTrainedModel, prompts: list[list[int]], answers: Answers) -> Tensor:
    """Each answer's log-probability (prompts, K) by a plain forward pass over prompt and answer."""
    rows = []
    for prompt, some in zip(prompts, answers, strict=True):
        width = len(prompt) + max(map(len, some))
        ids = torch.tensor([prompt + list(answer) + [0] * (width - len(prompt) - len(answer)) for answer in some])
        logits = model(ids.to(model.device), use_cache=False).logits[:, len(prompt) - 1 : -1].float()
        targets = ids[:, len(prompt) :].to(model.device)
        taken = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].cpu()
        real = torch.arange(taken.shape[1]) < torch.tensor([[len(answer)] for answer in some])
        rows.append((taken * real).sum(-1))
    return torch.stack(rows)


def frequencies_p_value(ours: Answers, peer: Answers, vocabulary: int, exchanges: int = 999) -> float:
    """How often answers exchanged at random between the sides of a prompt differ as much in their tokens."""
    both = [a + b for a, b in zip(ours, peer, strict=True)]
    counts = torch.stack([torch.bincount(torch.tensor(row), minlength=vocabulary) for some in both for row in some])
    counts = counts[:, counts.sum(0) >= 10].float()
    generator = torch.Generator().manual_seed(0)
    sides = [(torch.arange(2 * K) < K).expand(len(both), -1)]
    sides += [torch.rand(len(both), 2 * K, generator=generator).argsort(-1) < K for _ in range(exchanges)]
    first = torch.stack([side.flatten() for side in sides]).float() @ counts
    expected = counts.sum(0) * first.sum(-1, keepdim=True) / counts.sum()
    statistic = ((first - expected) ** 2 / expected).sum(-1)
    return float((statistic >= statistic[0]).double().mean())


def drawing_times(rows: int = 128, vocabulary: int = 49_152, steps: int = 5) -> None:
    """Print the processor time of drawing one token a row: logits that fall with a token's rank, as a model's do."""
    generator = torch.Generator().manual_seed(0)
    by_rank = -1.6 * torch.arange(1, vocabulary + 1).log()
    logits = torch.stack([by_rank[torch.randperm(vocabulary, generator=generator)] for _ in range(rows)])
    logits += 0.5 * torch.randn(rows, vocabulary, generator=generator)
    uniform = torch.rand(rows, generator=generator)
    tried = drawing._TRIED
    for name, params, counts in (
        ("all tokens", SamplingParams(), tried),
        ("top_k 50", SamplingParams(top_k=50), tried),
        ("top_p 0.9", SamplingParams(top_p=0.9), tried),
        ("top_p 0.9, by a whole sort", SamplingParams(top_p=0.9), ()),
    ):
        drawing._TRIED = counts  # type: ignore[assignment]
        drawing.draw(logits, uniform, params)
        start = time.process_time()
        for _ in range(steps):
            drawing.draw(logits, uniform, params)
        print(f"{name:<28}{1000 * (time.process_time() - start) / steps:>8.1f} ms a step of {rows} rows")
    drawing._TRIED = tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawing", action="store_true", help="only the time of drawing tokens, on this many threads")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "hh-rlhf")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    every = ("generate", "continuous", *ENGINES, "llama.cpp")
    parser.add_argument("--peers", nargs="+", choices=every, default=["generate", "continuous"])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128, 256], help="of a peer at once, to be tried")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp, a file")
    arguments = parse(parser, {"prompts": 5, "new_tokens": 16, "peers": ["generate"], "rows": [64]})
    if arguments.drawing:
        drawing_times()
        return
    if "llama.cpp" in arguments.peers and not (arguments.gguf and arguments.gguf.is_file()):
        raise InputError(f"gguf: llama.cpp reads the model from a GGUF file, and {arguments.gguf} is none; name it")
    file = arguments.data / "helpful-base.jsonl.gz"
    if not file.is_file():
        print(f"skipped: {file} is not there; name the folder of the HH data with --data")
        return
    logging.set_verbosity_error()
    checkpoint = arguments.model or require_checkpoint("runs/hh/sft/checkpoint")
    matmul = matmul_peak()
    model = load_policy(checkpoint, dtype=frozen_dtype(DEVICE)).to(DEVICE).eval()
    renderer = Renderer(load_tokenizer(checkpoint))
    everything = [row.messages for row in load_preferences(file, on_bad_row="skip")]
    context = Context.of(model.config)
    lengths = map(len, renderer.prompts(everything))
    fitting = [
        m
        for m, length in zip(everything, lengths, strict=True)
        if length >= SHORTEST and context.holds(length + arguments.new_tokens)
    ]
    prompts = [fitting[i * len(fitting) // arguments.prompts] for i in range(arguments.prompts)]
    rendered = renderer.prompts(prompts)
    print(f"{len(prompts)} prompts of {fmean(map(len, rendered)):.0f} tokens in the mean")

    params = SamplingParams(
        max_new_tokens=arguments.new_tokens, temperature=arguments.temperature, top_p=arguments.top_p
    )
    sides = Sides(model, renderer, params)
    some = prompts[::4]
    if GPU:
        sides.ours(some, None)  # its kernels are loaded, as they are for the peers then
    before = timed(sides.ours, prompts, None)
    print(f"ours: {before.answers:.2f} answers/s before the peers run", flush=True)
    prefilled, drawn = sum(map(len, rendered)), before.tokens
    share = peak_share(Arithmetic.of(checkpoint).forward(prefilled + drawn, drawn), before.seconds, matmul)
    few = sorted({arguments.rows[0], arguments.rows[-1]})

    def speed(side: str, asked: list[Conversation], size: int) -> float:
        if side in ENGINES:
            return timed_engine(checkpoint, asked, params, size, ENGINES[side]).answers
        if side == "llama.cpp":
            number, seconds = llama_cpp.answered(arguments.gguf, renderer.prompts(asked), K, params, size, spent)
            return (1 if GPU else PROCESSES) * number / seconds
        return timed({"generate": sides.generate, "continuous": sides.continuous}[side], asked, size).answers

    tried: dict[tuple[str, int], float] = {}
    for side in arguments.peers:
        for size in arguments.rows if side == "generate" else few:
            tried[side, size] = speed(side, some, size)
            print(f"{side}: {tried[side, size]:.2f} answers/s at {size} rows, a quarter of the prompts", flush=True)
    side, size = max(tried, key=lambda pair: tried[pair])
    peer = speed(side, prompts, size)
    print(f"{side}: {peer:.2f} answers/s at {size} rows", flush=True)
    after = timed(sides.ours, prompts, None).answers
    print(f"ours: {after:.2f} answers/s after the peers ran", flush=True)

    answers = {"ours": sides.ours(some, None), "generate": sides.generate(some, arguments.rows[0])}
    ours, theirs = (logprobs(model, rendered[::4], drawn) for drawn in answers.values())
    gap = (ours - theirs).mean(-1)
    means = [fmean(len(answer) for row in drawn for answer in row) for drawn in answers.values()]
    print(
        f"answers' mean length {means[0]:.1f} and {means[1]:.1f}; token frequencies: p = "
        f"{frequencies_p_value(*answers.values(), model.config.vocab_size):.2f}; mean log-probability "
        f"{ours.mean():.1f} and {theirs.mean():.1f}, difference {gap.mean():.1f} +- {gap.std() / len(gap) ** 0.5:.1f}"
    )
    rate = (before.answers + after) / 2
    figures = {"ours": round(rate, 2), "peer": round(peer, 2), "ratio": round(rate / peer, 2)}
    print(json.dumps({"name": "sampling", **figures, "unit": "answers/s", **share}))


if __name__ == "__main__":
    run(main)
