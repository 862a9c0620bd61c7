from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.sampling.chat import ServerConfig
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.sampling.shards import ShardWriter, kept_samples, read_shards
from rlhf.sampling.source import PolicySource, TokenizedPolicy
from rlhf.stage import Kept, StageConfig, open_stage

PARAMS = SamplingParams(seed=1)
PROMPTS: list[Conversation] = [[{"role": "user", "content": "goat " * n}] for n in (3, 1, 7, 5, 2, 6, 4)]


def samples_of(key: int, n: int = 2) -> list[Sample]:
    """With what JSON could lose: a float32 to its last bit, a line break, a lone surrogate's neighbour, NaN."""
    return [Sample(f"answer {key}\n é\u2028{i}", (key, i), -1.0000001192092896 / (key + 1), i > 0) for i in range(n)]


def write(folder: Path, process: int, answers: dict[int, list[Sample]]) -> None:
    writer = ShardWriter(folder, process)
    for position, samples in answers.items():
        writer.write(position, samples)


class Recorder:
    """A sampler whose answers name their key; `calls` are the keys of each call. Fails at the call `fail_at`."""

    def __init__(self, fail_at: int = -1) -> None:
        self.calls: list[list[int]] = []
        self.fail_at = fail_at

    def sample(
        self, prompts: Sequence[Conversation], num_samples: int, params: SamplingParams, keys: Sequence[int]
    ) -> list[list[Sample]]:
        if len(self.calls) == self.fail_at:
            raise InputError("out of luck")
        self.calls.append(list(keys))
        return [samples_of(key, num_samples) for key in keys]


class Stream(Recorder):
    """The same prompt by prompt, the last first."""

    def stream(self, prompts, num_samples, params, keys) -> Iterator[tuple[int, list[Sample]]]:
        for i in reversed(range(len(prompts))):
            yield i, self.sample([prompts[i]], num_samples, params, [keys[i]])[0]


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write(tmp_path, 0, {2: samples_of(2), 0: samples_of(0)})
    write(tmp_path, 1, {1: samples_of(1)})
    write(tmp_path, 0, {4: samples_of(4)})
    assert read_shards(tmp_path) == {p: samples_of(p) for p in (2, 0, 4, 1)}
    write(tmp_path, 0, {7: [Sample("", (), math.nan, True)]})
    assert math.isnan(read_shards(tmp_path)[7][0].logprob)
    assert read_shards(tmp_path / "none") == {}


def test_half_a_line_is_dropped_and_overwritten(tmp_path: Path) -> None:
    write(tmp_path, 0, {p: samples_of(p) for p in range(3)})
    file = tmp_path / "0.jsonl"
    whole = file.read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    for cut in range(starts[1] - 2, len(whole), 3):
        file.write_bytes(whole[:cut])
        left = sum(start <= cut for start in starts[1:])
        assert list(read_shards(tmp_path)) == list(range(left))
    write(tmp_path, 0, {2: samples_of(2)})
    assert file.read_bytes() == whole


def test_the_first_of_two_lines_counts_files_by_number(tmp_path: Path) -> None:
    for process, key in ((10, 10), (9, 9), (2, 2)):
        write(tmp_path, process, {5: samples_of(key)})
        write(tmp_path, process, {5: samples_of(20)})
    assert read_shards(tmp_path) == {5: samples_of(2)}


@pytest.mark.parametrize("line", [b"garbage", b"[]", b'{"prompt": 1}', b'{"prompt": 1, "samples": [{"text": ""}]}'])
def test_a_spoiled_line_is_named(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, 0, {0: samples_of(0)})
    with (tmp_path / "0.jsonl").open("ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(InputError, match=r"0\.jsonl:2: is no line of answers; remove .* to draw all again"):
        read_shards(tmp_path)


def test_a_sampler_that_does_not_stream_is_asked_once(tmp_path: Path, accelerator: Accelerator) -> None:
    expected = [samples_of(key) for key in range(7)]
    for shards in (tmp_path, None):
        sampler = Recorder()
        assert sample_distributed(sampler, PROMPTS, 2, PARAMS, accelerator, shards=shards) == expected
        assert sampler.calls == [list(range(7))]
    again = Recorder(fail_at=0)
    assert sample_distributed(again, PROMPTS, 2, PARAMS, accelerator, shards=tmp_path) == expected


def test_a_streaming_sampler_s_answers_are_written_one_by_one(tmp_path: Path, accelerator: Accelerator) -> None:
    keys = [10 + i for i in range(7)]
    with pytest.raises(InputError, match="out of luck"):
        sample_distributed(Stream(fail_at=3), PROMPTS, 2, PARAMS, accelerator, keys, shards=tmp_path)
    assert [json.loads(line)["prompt"] for line in (tmp_path / "0.jsonl").read_text().splitlines()] == [6, 5, 4]
    second = Stream()
    drawn = sample_distributed(second, PROMPTS, 2, PARAMS, accelerator, keys, shards=tmp_path)
    assert drawn == [samples_of(key) for key in keys]
    assert second.calls == [[13], [12], [11], [10]]


def test_shards_of_more_processes_are_taken_over(tmp_path: Path, accelerator: Accelerator) -> None:
    write(tmp_path, 0, {p: samples_of(p) for p in (0, 2)})
    write(tmp_path, 1, {p: samples_of(p) for p in (1, 5)})
    (tmp_path / "1.jsonl").open("ab").write(b'{"prompt": 3, "samp')
    sampler = Recorder()
    drawn = sample_distributed(sampler, PROMPTS, 2, PARAMS, accelerator, shards=tmp_path)
    assert drawn == [samples_of(key) for key in range(7)]
    assert sorted(key for block in sampler.calls for key in block) == [3, 4, 6]


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    policy: TokenizedPolicy


def test_what_decides_the_answers_decides_what_is_kept(tiny_policy_path: Path, tmp_path: Path) -> None:
    def kept(prompts: Any = PROMPTS, n: int = 2, params: SamplingParams = PARAMS, **policy: Any) -> Kept:
        source = PolicySource(**{"checkpoint": tiny_policy_path, **policy})
        return kept_samples(prompts, n, params, open_stage(Config(output=tmp_path / "out", policy=source)), "policy")

    server = ServerConfig("http://a/v1", "m")
    whole, served = kept(), kept(server=server)
    assert whole == kept(list(PROMPTS), 2, SamplingParams(seed=1))
    assert served == kept(server=ServerConfig("http://b/v1", "m", concurrency=3, retries=0)), (
        "patience changes no answer"
    )
    assert whole.inputs == served.inputs == ["policy"], "the checkpoint's content decides, not where it lies"
    different = [
        kept(PROMPTS[1:]),
        kept(PROMPTS[::-1]),
        kept(n=3),
        kept(params=SamplingParams(seed=2)),
        kept(quantization="nf4"),
        kept(dtype="bfloat16"),
        served,
        kept(server=ServerConfig("http://a/v1", "another")),
    ]
    assert all(other.values != whole.values for other in different) and different[-1].values != served.values
    rounds = kept(rows=3, compile=True)
    changed = {name for name, value in rounds.values.items() if value != whole.values[name]}
    assert changed == {"policy.rows", "policy.compile"} == set(rounds.rounding)
