"""vllm itself, where it is installed, on a real chat model: by the command line, and its log-probabilities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.conversation import Renderer
from rlhf.iteration.plan import find_recipe
from rlhf.metrics import read_metrics
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.rejection.pool import read_completions
from rlhf.sampling.engine.following import FollowingEngine
from rlhf.sampling.opening import Opening, open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import EngineConfig, PolicySource

pytestmark = pytest.mark.real_model

ROOT = Path(__file__).resolve().parents[3]
QUESTIONS = ("What is the capital of France?", "Name three rivers.", "Why is the sky blue?")
PROMPTS = [[{"role": "user", "content": text}] for text in QUESTIONS]
REWARD = """
import torch
def short(conversations):
    return torch.tensor([-float(len(c[-1]["content"])) for c in conversations])
"""


@pytest.fixture(scope="module")
def environment() -> Path:
    folder = ROOT / ".venv-vllm"
    if not (folder / "bin" / "vllm").is_file():
        pytest.skip("vllm is not installed; `make vllm` makes .venv-vllm")
    return folder


def total_logprobs(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """Plain transformers' log-probabilities of the answers behind their prompts, one row at a time."""
    found = []
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        found.append(logprobs.gather(-1, torch.tensor(answer)[:, None]).sum().item())
    return found


def run(recipe: str, folder: Path, *words: str) -> None:
    """A recipe's command on the prompts above, with a reward for what is short, to its end."""
    (folder / "prefers.py").write_text(REWARD, encoding="utf-8")
    prompts = [json.dumps({"id": f"p{i}", "messages": prompt}) + "\n" for i, prompt in enumerate(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(prompts), encoding="utf-8")
    common = ("--output", "out", "--prompts", "prompts.jsonl", "--helpfulness", "prefers:short")
    command = [sys.executable, str(find_recipe(recipe)), *common, *words]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    done = subprocess.run(command, cwd=folder, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def save_adapter(real_model: Path, folder: Path, seed: int) -> Any:
    """A checkpoint of an adapter that changes something; the model with it."""
    model = load_policy(real_model, adapter=AdapterConfig(r=4, alpha=8, dropout=0.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02, generator=generator)
    save_policy(model, load_tokenizer(real_model), folder, merge=False)
    return model.eval()


def test_rejection_sampling_with_ids_as_drawn(environment: Path, real_model: Path, tmp_path: Path) -> None:
    words = ["--policy", str(real_model), "--policy.engine", "vllm", "--policy.engine.environment", str(environment)]
    words += ["--sft_share", "0"]
    words += ["--fine_tune_from", str(real_model), "--adapter.r", "2", "--num_samples", "4"]
    words += ["--sampling.max_new_tokens", "24", "--sampling.temperature", "0.7", "--sampling.top_p", "0.9"]
    run("rejection_sampling", tmp_path, *words)
    rows = read_completions(tmp_path / "out" / "completions.parquet")
    assert len(rows) == 12 and len({row.token_ids for row in rows}) > 6
    renderer = Renderer(load_tokenizer(real_model))
    starts = dict(zip(("p0", "p1", "p2"), renderer.prompts(PROMPTS), strict=True))
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    wanted = total_logprobs(model, [(starts[row.prompt_id], row.token_ids) for row in rows])
    assert [row.logprob for row in rows] == pytest.approx(wanted, abs=1e-3)
    for row in rows:
        assert row.text == renderer.answer_text(row.token_ids)
        assert row.finished == (row.token_ids[-1] in renderer.end_token_ids)
        assert row.finished or len(row.token_ids) == 24


def test_an_adapter_and_the_same_draws_again(environment: Path, real_model: Path, tmp_path: Path) -> None:
    model = save_adapter(real_model, tmp_path / "saved", seed=1)
    tokenizer = load_tokenizer(real_model)
    source = PolicySource(checkpoint=tmp_path / "saved", engine=EngineConfig(environment=environment))
    sampler = open_sampler(source, torch.device("cpu"))
    params = SamplingParams(max_new_tokens=16, seed=3)
    drawn = sampler.sample(PROMPTS, 3, params)
    again = sampler.sample(PROMPTS[::-1], 3, params, keys=[2, 1, 0])[::-1]
    assert [[s.token_ids for s in row] for row in again] == [[s.token_ids for s in row] for row in drawn]
    greedy = sampler.sample(PROMPTS, 1, SamplingParams(temperature=0.0, max_new_tokens=16))
    del sampler
    rows = zip(Renderer(tokenizer).prompts(PROMPTS), drawn, strict=True)
    asked = [(start, sample.token_ids) for start, row in rows for sample in row]
    wanted = total_logprobs(model, asked)
    assert [sample.logprob for row in drawn for sample in row] == pytest.approx(wanted, abs=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    assert max(abs(a - b) for a, b in zip(total_logprobs(plain, asked), wanted, strict=True)) > 0.1
    ours = open_sampler(PolicySource(checkpoint=tmp_path / "saved"), torch.device("cpu"))
    same = ours.sample(PROMPTS, 1, SamplingParams(temperature=0.0, max_new_tokens=16))
    assert [row[0].token_ids for row in same] == [row[0].token_ids for row in greedy]


def test_it_follows_a_training(environment: Path, real_model: Path, tmp_path: Path) -> None:
    """From one adapter to the next within one start of the engine; then to whole weights, and it is started anew."""
    params, renderer = SamplingParams(max_new_tokens=12, seed=3), Renderer(load_tokenizer(real_model))
    models = {name: save_adapter(real_model, tmp_path / name, seed) for seed, name in enumerate(("first", "second"))}
    engine = EngineConfig(environment=environment)
    opening = Opening(torch.device("cpu"), renderer)
    sampler = FollowingEngine(PolicySource(checkpoint=tmp_path / "first", engine=engine, rows=8), opening)
    found, started = {}, []
    for name in ("first", "second"):
        sampler.follow(tmp_path / name)
        rows = zip(renderer.prompts(PROMPTS), sampler.sample(PROMPTS, 2, params), strict=True)
        drawn = [(start, sample) for start, samples in rows for sample in samples]
        asked = [(start, sample.token_ids) for start, sample in drawn]
        found[name] = {other: total_logprobs(model, asked) for other, model in models.items()}
        assert [sample.logprob for _, sample in drawn] == pytest.approx(found[name][name], abs=1e-3)
        started.append(sampler._process)
    pairs = zip(found["second"]["first"], found["second"]["second"], strict=True)
    assert max(abs(a - b) for a, b in pairs) > 0.1, "they are two policies"
    assert started[0] is started[1]
    sampler.follow(real_model)
    rows = zip(renderer.prompts(PROMPTS), sampler.sample(PROMPTS, 2, params), strict=True)
    drawn = [(start, sample) for start, samples in rows for sample in samples]
    plain = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    wanted = total_logprobs(plain, [(start, sample.token_ids) for start, sample in drawn])
    assert [sample.logprob for _, sample in drawn] == pytest.approx(wanted, abs=1e-3)
    sampler.close()


def test_ppo_by_its_draws(environment: Path, real_model: Path, tmp_path: Path) -> None:
    words = ["--validation_prompts", "prompts.jsonl", "--policy", str(real_model), "--policy.engine", "vllm"]
    words += ["--policy.engine.environment", str(environment), "--roles", "shared", "--adapter.r", "2"]
    words += ["--ppo.iterations", "2", "--ppo.batch_size", "6", "--ppo.samples_per_prompt", "2"]
    words += ["--ppo.estimator", "rloo", "--ppo.evaluate_every", "1", "--ppo.optimizer.learning_rate", "1e-4"]
    words += ["--sampling.max_new_tokens", "16", "--sampling.temperature", "0.7"]
    run("ppo", tmp_path, *words)
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["first_ratio"] for row in rows[:2]] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert rows[0]["heldout_kl"] == 0.0 and rows[2]["heldout_kl"] != 0.0
