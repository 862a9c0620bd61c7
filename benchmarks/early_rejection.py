"""Early rejection: what the selected lose, and how many tokens it saves, at some settings.

    OMP_NUM_THREADS=1 python benchmarks/early_rejection.py [--run runs/demo] [--new-tokens 48] [--temperature 0.8]

The SFT model of a finished run answers prompts 16 times, and V1's two reward models choose the best finished answer of
each: once of all answers written to their end, once for each setting of early rejection. The draws are the same, so
that a prompt's two best answers differ only where the better one was given up. Settings drop a share of a prompt's rows
after shares of the tokens that an answer has in the mean.

Beside it what the same tokens buy without early rejection: the expected best of fewer whole answers (unbiased, from
order statistics). Intervals are 95 % over prompts, of each prompt's mean over three seeds. The last line is JSON: the
reward of the selected at the best setting of at most 60 % of the tokens, with all answers, and the share of the tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.conversation import Renderer
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Prompt
from rlhf.intervals import mean_interval
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.objectives.best_of_n import expected_max
from rlhf.paths import require_files
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.loading import load_reward
from rlhf.sampling.early_rejection import EarlyRejection, EarlyRejectionConfig, ScoreParts
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams

K, SEEDS, MOST = 16, (0, 1, 2), 0.6
SETTINGS = (
    ((0.5,), 0.5),
    ((0.25, 0.5, 0.75), 0.25),
    ((0.5,), 0.75),
    ((0.25,), 0.5),
    ((0.25, 0.5), 0.5),
    ((0.25,), 0.75),
)


class Round(NamedTuple):
    """rewards (prompts, K), -inf where an answer cannot be chosen; tokens written; seconds of CPU, scoring included."""

    rewards: Tensor
    tokens: int
    seconds: float

    @property
    def best(self) -> list[float]:
        """Of each prompt, -inf where it has no answer."""
        return self.rewards.amax(1).tolist()


def sample(sampler: InProcessSampler, prompts: list[Prompt], params: SamplingParams, score: ScoreParts) -> Round:
    """Draw, and score the answers that can be chosen."""
    started = time.process_time()
    drawn = sampler.sample([prompt.messages for prompt in prompts], K, params)
    rewards = torch.full((len(prompts), K), -torch.inf)
    usable = [(p, i) for p, row in enumerate(drawn) for i, s in enumerate(row) if s.finished and s.text]
    scores = score([p for p, _ in usable], [drawn[p][i].text for p, i in usable])
    rewards[tuple(torch.tensor(usable).T)] = scores
    return Round(rewards, sum(len(s.token_ids) for row in drawn for s in row), time.process_time() - started)


def over_prompts(rows: list[list[float]]) -> tuple[float, float]:
    """Mean and half an interval over prompts of (seeds, prompts) values; infinite ones are left out."""
    columns = [[x for x in column if abs(x) < float("inf")] for column in zip(*rows, strict=True)]
    found = mean_interval([fmean(column) for column in columns if column])
    assert found is not None
    return found.mean, found.mean - found.ci[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.8)
    arguments = parser.parse_args()
    policy, rewards = arguments.run / "sft/checkpoint", arguments.run / "v1"
    require_files(run=policy)
    prompts = load_prompts(arguments.run / "data/prompts.jsonl")
    prompts = [prompts[i * len(prompts) // arguments.prompts] for i in range(min(len(prompts), arguments.prompts))]
    judges = [load_reward(rewards / f"{domain}_reward/checkpoint") for domain in ("helpfulness", "safety")]
    score = GatedReward(*judges).of_parts(prompts)
    model, renderer = load_policy(policy), Renderer(load_tokenizer(policy))

    def rounds(rejection: EarlyRejection | None) -> list[Round]:
        sampler = InProcessSampler(model, renderer, early_rejection=rejection)
        shape = {"temperature": arguments.temperature, "max_new_tokens": arguments.new_tokens}
        return [sample(sampler, prompts, SamplingParams(**shape, seed=seed), score) for seed in SEEDS]

    whole = rounds(None)
    tokens, seconds = sum(r.tokens for r in whole), sum(r.seconds for r in whole)
    length = tokens / len(SEEDS) / len(prompts) / K
    reward, spread = over_prompts([r.best for r in whole])
    print(
        f"{len(prompts)} prompts, {K} answers of {length:.1f} tokens in the mean, temperature {arguments.temperature}"
    )
    print(f"best of all: {reward:.3f} +- {spread:.3f}; one answer: {over_prompts([mean_of(r) for r in whole])[0]:.3f}")
    print("at tokens  drop  tokens  seconds  best, less that of all      none left  best of as many tokens")
    found = []
    for shares, drop in SETTINGS:
        at = tuple(max(1, round(share * length)) for share in shares)
        some = rounds(EarlyRejection(EarlyRejectionConfig(at, drop), score))
        share = sum(r.tokens for r in some) / tokens
        lost = [[b - a for a, b in zip(w.best, s.best, strict=True)] for w, s in zip(whole, some, strict=True)]
        loss, error = over_prompts(lost)
        none_left = fmean(x == -float("inf") for r in some for x in r.best) - fmean(
            x == -float("inf") for r in whole for x in r.best
        )
        fewer, _ = over_prompts([best_of(r, max(1, round(share * K))) for r in whole])
        time_share = sum(r.seconds for r in some) / seconds
        found.append((loss, share))
        print(
            f"{'+'.join(map(str, at)):>9}  {drop:4.2f}  {share:6.1%}  {time_share:7.1%}  {reward + loss:.3f}, "
            f"{loss:+.3f} +- {error:.3f}  {none_left:9.1%}  {fewer:.3f}, {fewer - reward:+.3f}",
            flush=True,
        )
    loss, share = max((pair for pair in found if pair[1] <= MOST), default=max(found))
    figures = {"ours": round(reward + loss, 3), "peer": round(reward, 3), "ratio": round(share, 3)}
    print(json.dumps({"name": "early rejection", **figures, "unit": "reward of the selected; ratio of the tokens"}))


def mean_of(drawn: Round) -> list[float]:
    """Each prompt's mean reward of an answer that can be chosen."""
    usable = drawn.rewards > -torch.inf
    sums = drawn.rewards.masked_fill(~usable, 0.0).sum(1)
    means: list[float] = (sums / usable.sum(1)).nan_to_num(float("inf")).tolist()
    return means


def best_of(drawn: Round, k: int) -> list[float]:
    """Each prompt's expected best of k answers; one that cannot be chosen counts with the prompt's lowest reward."""
    usable = drawn.rewards > -torch.inf
    lowest = drawn.rewards.masked_fill(~usable, torch.inf).amin(1, keepdim=True)
    best: list[float] = expected_max(torch.where(usable, drawn.rewards, lowest), k).tolist()
    return best


if __name__ == "__main__":
    main()
