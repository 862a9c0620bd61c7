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
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.rejection.pool import read_completions
from rlhf.sampling.opening import open_sampler
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


def test_rejection_sampling_with_ids_as_drawn(environment: Path, real_model: Path, tmp_path: Path) -> None:
    (tmp_path / "prefers.py").write_text(REWARD, encoding="utf-8")
    prompts = [json.dumps({"id": f"p{i}", "messages": prompt}) + "\n" for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(prompts), encoding="utf-8")
    words = ["--output", "out", "--prompts", "prompts.jsonl", "--helpfulness", "prefers:short", "--sft_share", "0"]
    words += ["--policy", str(real_model), "--policy.engine", "vllm", "--policy.engine.environment", str(environment)]
    words += ["--fine_tune_from", str(real_model), "--adapter.r", "2", "--num_samples", "4"]
    words += ["--sampling.max_new_tokens", "24", "--sampling.temperature", "0.7", "--sampling.top_p", "0.9"]
    command = [sys.executable, str(find_recipe("rejection_sampling")), *words]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
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
    model = load_policy(real_model, adapter=AdapterConfig(r=4, alpha=8, dropout=0.0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    tokenizer = load_tokenizer(real_model)
    save_policy(model, tokenizer, tmp_path / "saved", merge=False)
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
    wanted = total_logprobs(model.eval(), asked)
    assert [sample.logprob for row in drawn for sample in row] == pytest.approx(wanted, abs=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    assert max(abs(a - b) for a, b in zip(total_logprobs(plain, asked), wanted, strict=True)) > 0.1
    ours = open_sampler(PolicySource(checkpoint=tmp_path / "saved"), torch.device("cpu"))
    same = ours.sample(PROMPTS, 1, SamplingParams(temperature=0.0, max_new_tokens=16))
    assert [row[0].token_ids for row in same] == [row[0].token_ids for row in greedy]
