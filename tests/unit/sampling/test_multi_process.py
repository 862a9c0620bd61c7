from __future__ import annotations

import json
import math
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ready_python import ReadyPython

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.protocol import Sample, SamplerGone, SamplingParams
from rlhf.sampling.shards import read_shards

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
@pytest.mark.xdist_group("ready")
def test_one_and_two_processes_draw_the_same_samples(
    tiny_policy_path: Path, ready_python: ReadyPython, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[3]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    one = subprocess.Popen(
        [*ready_python.python, str(program), str(tiny_policy_path), str(tmp_path)], env=environment, cwd=tmp_path
    )
    launch = [*ready_python.python, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    launch += ["--rdzv_endpoint", "localhost:0", *ready_python.script]
    two = subprocess.run(
        [*launch, str(program), str(tiny_policy_path), str(tmp_path)],
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


WORLD = 3
PROMPTS: list[Conversation] = [[{"role": "user", "content": f"goat {n}"}] for n in range(10)]


class Failing:
    """Answers so many prompts, by their keys, and then raises what it is given."""

    def __init__(self, answers: float, error: type[InputError]) -> None:
        self.left, self.error, self.asked = answers, error, list[int]()

    def stream(
        self, prompts: Sequence[Conversation], num_samples: int, params: SamplingParams, keys: Sequence[int]
    ) -> Iterator[tuple[int, list[Sample]]]:
        for i, key in enumerate(keys):
            if self.left == 0:
                raise self.error("the engine died")
            self.left -= 1
            self.asked.append(key)
            yield i, [Sample(f"answer {key}", (key,), -1.0, True)] * num_samples

    sample = stream  # never called: it streams


def on_all(samplers: Sequence[Failing], shards: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each process gets, or its error; threads stand for them."""
    barrier, slots, here = threading.Barrier(WORLD, timeout=20), [[]] * WORLD, threading.local()

    def gather(objects: list[Any]) -> list[Any]:
        slots[here.process] = objects
        barrier.wait()
        found = [one for part in slots for one in part]
        barrier.wait()
        return found

    def draw(process: int) -> Any:
        here.process = process
        accelerator: Any = SimpleNamespace(
            process_index=process, num_processes=WORLD, is_main_process=process == 0, wait_for_everyone=barrier.wait
        )
        try:
            return sample_distributed(samplers[process], PROMPTS, 2, SamplingParams(), accelerator, shards=shards)
        except InputError as error:
            return str(error)

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    with ThreadPoolExecutor(WORLD) as pool:
        return list(pool.map(draw, range(WORLD)))


def test_what_a_sampler_that_is_gone_leaves_the_others_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samplers = [Failing(math.inf, SamplerGone), Failing(1, SamplerGone), Failing(4, SamplerGone)]
    found = on_all(samplers, tmp_path, monkeypatch)
    assert [[row[0].token_ids for row in rows] for rows in found] == [[(n,) for n in range(10)]] * WORLD
    assert samplers[1].asked == [1] and samplers[2].asked == [2, 5, 8, 7], "4 to the first, 7 to the third: it had room"
    assert sorted(samplers[0].asked) == [0, 3, 4, 6, 9], "nothing is drawn twice"
    assert sorted(read_shards(tmp_path)) == list(range(10))
    assert "the engine died; the other processes draw what it has left" in capsys.readouterr().err


def test_of_processes_that_share_a_sampler_the_first_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, two of them with one engine over two GPUs, and a third whose engine would have another."""
    samplers = [Failing(math.inf, SamplerGone) for _ in range(WORLD)]
    for sampler in samplers:
        sampler.shared_by = 2  # type: ignore[attr-defined]
    found = on_all(samplers, tmp_path, monkeypatch)
    assert [[row[0].token_ids for row in rows] for rows in found] == [[(n,) for n in range(10)]] * WORLD
    assert [sampler.asked for sampler in samplers] == [[0, 2, 4, 6, 8], [], [1, 3, 5, 7, 9]]


@pytest.mark.parametrize(
    ("answers", "error"), [((1, 1, 1), SamplerGone), ((math.inf, 1, math.inf), InputError)], ids=["all", "a mistake"]
)
def test_it_fails_everywhere_where_none_is_left_or_a_mistake_is_why(
    answers: Sequence[float], error: type[InputError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers = [Failing(count, error) for count in answers]
    assert on_all(samplers, tmp_path, monkeypatch) == ["the engine died"] * WORLD
    assert samplers[1].asked == [1] and len(read_shards(tmp_path)) == (3 if error is SamplerGone else 8)
