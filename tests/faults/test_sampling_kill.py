"""Kill rejection sampling, or the server that it asks, in the middle: the same command goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from served import Served

from rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from rlhf.sampling.protocol import Sample

ROOT = Path(__file__).resolve().parents[2]
RUNS = """
import gc, json, os, sys
import rejection_sampling, rlhf.finetuning.supervised, rlhf.rewards.loading
from rlhf.configuration import run_recipe
from rlhf.sampling.decoding.decoder import Decoder
from rlhf.sampling.shards import ShardWriter

admit, write, written = Decoder.admit, ShardWriter.write, 0

def noted(self, prompts, owners):
    with open(trace, "a") as stream:
        stream.write("".join(f"{key}\\n" for key in sorted({owner.key for owner in owners})))
    admit(self, prompts, owners)

def counted(self, prompt, samples):
    global written
    if written == kill_at:
        self._stream.write(b'{"prompt": 0, "sam')
        self._stream.flush()
        os.kill(os.getpid(), 9)
    write(self, prompt, samples)
    written += 1

Decoder.admit, ShardWriter.write = noted, counted
gc.freeze()
for kill_at, trace, sys.argv[1:] in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        run_recipe(rejection_sampling.main, rejection_sampling.RejectionSamplingConfig)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
REWARDS = """
import torch

def length(conversations):
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])
"""


def test_kill_9_in_the_middle_of_sampling(tiny_policy_path: Path, tmp_path: Path) -> None:
    from pyarrow.parquet import read_table

    (tmp_path / "rewards_of_this_test.py").write_text(REWARDS)
    (tmp_path / "runs.py").write_text(RUNS)
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}]} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def options(output: str) -> list[str]:
        given = {
            "output": output,
            "policy": tiny_policy_path,
            "fine_tune_from": tiny_policy_path,
            "prompts": "prompts.jsonl",
            "helpfulness": "rewards_of_this_test:length",
            "safety": "rewards_of_this_test:length",
            "num_samples": 5,
            "policy.rows": 10,
            "sampling.max_new_tokens": 100,
        }
        return [part for name, value in given.items() for part in (f"--{name}", str(value))]

    runs = [(-1, "whole.trace", options("whole")), (5, "killed.trace", options("killed"))]
    runs.append((-1, "again.trace", options("killed")))
    done = subprocess.run(
        [sys.executable, "runs.py", json.dumps(runs)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'recipes'}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.split() == ["0", str(-signal.SIGKILL), "0"], done.stderr
    assert "goes on, 5 of 12 prompts are answered" in done.stderr
    whole, killed, again = ((tmp_path / f"{name}.trace").read_text().split() for name in ("whole", "killed", "again"))
    assert sorted(whole) == sorted({*killed, *again}) == sorted(map(str, range(12))) and len(again) == 7
    assert len({*killed} & {*again}) == len(killed) - 5 < 7, "twice only what was being written"

    first, second = (read_table(tmp_path / output / "completions.parquet") for output in ("whole", "killed"))
    for name in first.column_names:
        one, other = first[name].to_pylist(), second[name].to_pylist()
        assert one == (pytest.approx(other, rel=1e-6) if name == "logprob" else other), name
    for file in ("selected.jsonl", "selection.json", "checkpoint/model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file
    assert not (tmp_path / "killed" / "samples").exists()


@pytest.fixture
def served(tiny_policy_path: Path, tmp_path: Path) -> Iterator[Served]:
    server = Served(tiny_policy_path, tmp_path)
    yield server
    server.close()


@pytest.mark.long
def test_transformers_serve_killed_and_started_again_in_the_middle(
    served: Served, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from accelerate import Accelerator

    from rlhf.conversation import Renderer
    from rlhf.sampling.multi_process import sample_distributed
    from rlhf.sampling.protocol import SamplingParams
    from rlhf.sampling.server import ServerConfig, ServerSampler
    from rlhf.sampling.shards import read_shards

    config = ServerConfig(served.url, served.model, concurrency=2, retries=1)
    renderer = Renderer(tiny_tokenizer)
    prompts = [[{"role": "user", "content": f"what is {i} ?"}] for i in range(8)]
    params = SamplingParams(max_new_tokens=16, seed=5)

    class KilledServer(ServerSampler):
        """Its server dies after three prompts."""

        def stream(self, *arguments: Any) -> Iterator[Any]:
            for number, answers in enumerate(super().stream(*arguments), start=1):
                yield answers
                if number == 3:
                    served.kill()

    def draw(sampler: ServerSampler) -> list[list[Sample]]:
        return sample_distributed(sampler, prompts, 2, params, Accelerator(cpu=True), shards=tmp_path / "samples")

    served.start()
    with pytest.raises(InputError, match=r"does not serve 'tests/big' but tests/served; set server\.model"):
        ServerSampler(replace(config, model="tests/big"), renderer).sample(prompts[:1], 1, params)
    with pytest.raises(InputError, match=r"cannot be reached .*, 2 times in a row; see to it, then give the same"):
        draw(KilledServer(config, renderer))
    kept = read_shards(tmp_path / "samples")
    assert 3 <= len(kept) < 8

    served.start()
    drawn = draw(ServerSampler(config, renderer))
    assert {position: drawn[position] for position in kept} == kept, "what came before the kill is as it was"
    assert [len(row) for row in drawn] == [2] * 8
    assert len({sample.text for row in drawn for sample in row}) > 12, "drawn at temperature 1, and not greedily"
    assert all(len(sample.text) < 100 and (sample.finished or sample.token_ids) for row in drawn for sample in row)
    log = served.log.read_text()
    assert log.count('"POST /v1/chat/completions HTTP/1.1" 422') == 2, "once a stream: it does not know top_k"
