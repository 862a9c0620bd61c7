from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, torch
from rlhf.conversation import Renderer
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.sampling.early_rejection import EarlyRejection, EarlyRejectionConfig
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator

accelerator = make_accelerator()
longest = lambda keys, texts: torch.tensor([float(len(text)) for text in texts])
rejection = EarlyRejection(EarlyRejectionConfig(at=(4,)), longest)
rows = 64 if accelerator.num_processes == 1 else 4
sampler = InProcessSampler(load_policy(sys.argv[1]), Renderer(load_tokenizer(sys.argv[1])), rows, rejection)
prompts = [[{"role": "user", "content": "goat " * n}] for n in range(1, 8)]
shards = f"{sys.argv[2]}/shards" if accelerator.num_processes == 2 else None
params = SamplingParams(max_new_tokens=8, stop=("a", "o"))
samples = sample_distributed(sampler, prompts, 4, params, accelerator, shards=shards)
ids = [[list(sample.token_ids) for sample in row] for row in samples]
with open(f"{sys.argv[2]}/{accelerator.num_processes}_{accelerator.process_index}.json", "w") as stream:
    json.dump(ids, stream)
"""


@pytest.mark.doors
def test_one_and_two_processes_draw_the_same_samples(tiny_policy_path: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[3]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    one = subprocess.Popen(
        [sys.executable, str(program), str(tiny_policy_path), str(tmp_path)], env=environment, cwd=tmp_path
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    two = subprocess.run(
        [*launch, "--rdzv_endpoint", "localhost:0", str(program), str(tiny_policy_path), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        timeout=600,
    )
    assert two.returncode == 0 and one.wait(timeout=600) == 0
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1_0", "2_0", "2_1"))
    assert alone == first == second
    assert len(alone) == 7 and all(len(row) == 4 for row in alone)
    lengths = {len(ids) for row in alone for ids in row}
    assert {4, 8} < lengths, "some are dropped, some stop at a text, some go on to the end"
    for process in range(2):
        lines = [json.loads(line) for line in (tmp_path / "shards" / f"{process}.jsonl").read_text().splitlines()]
        written = {line["prompt"]: [sample["token_ids"] for sample in line["samples"]] for line in lines}
        assert written == dict(list(enumerate(alone))[process::2])
