"""How fast this machine is with a model, and how long its answers are: a few things done once, at two sizes each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.iteration.hours.speed import Line, Speed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator

    from rlhf.conversation import Conversation
    from rlhf.sampling.protocol import SamplingParams
    from rlhf.sampling.source import PolicySource

ENOUGH = 20.0
"""Seconds beyond which the second size of a measurement is left out."""
ENOUGH_ANSWERS = 30.0
"""Seconds beyond which no answers are written to learn how long they are."""
SAMPLES = {"cpu": (8, 64), "cuda": (32, 256)}
TO_A_PROMPT = 8
"""Answers, of those SAMPLES."""
STEPS = 12
ROW_TOKENS = 128
ROWS = {"cpu": (1, 3), "cuda": (4, 32)}
"""Sizes that take a CPU seconds; a GPU does them in the time of one, and is measured with what begins to fill it."""


def measure(
    policy: str,
    adapter: Mapping[str, Any] | None,
    quantization: Literal["nf4"] | None,
    prompts: Sequence[Conversation],
    params: SamplingParams,
) -> tuple[Speed, Line | None, float | None]:
    """Load, write, score and train with a model, each a little.

    Args:
        adapter, quantization: as of a recipe that trains.
        prompts: some of the run's, which are answered as it will, where that takes no longer than ENOUGH_ANSWERS.
        params: how.

    Returns:
        The speed; MiB of a process in the middle of training, by the tokens of a forward pass, None where the system
        does not say; and the mean tokens of an answer over `params.max_new_tokens`, None where none were written.
    """
    from rlhf.sampling.source import PolicySource
    from rlhf.training.accelerator import make_accelerator

    accelerator = make_accelerator()
    source = PolicySource(checkpoint=Path(policy), quantization=quantization)
    load, score, decode, share = _as_it_is(source, accelerator.device, prompts, params)
    train, memory = _in_training(policy, adapter, quantization, accelerator)
    return Speed(load, score, train, decode), memory, share


def _as_it_is(
    source: PolicySource, device: Any, prompts: Sequence[Conversation], asked_params: SamplingParams
) -> tuple[float, Line, Line, float | None]:
    """Seconds of a load, of scoring by tokens, of a step of writing by answers; and `measure`'s share.

    Answers are written to prompts of the run: what stands before an answer is read at every step of it.
    """
    import torch

    from rlhf.sampling.opening import load_weights, open_sampler

    loaded: list[Any] = []
    load = seconds_of(lambda: loaded.append(load_weights(source, device)), device)
    model = loaded[0]
    sampler = open_sampler(source, device, model=model)
    asked = prompts or [[{"role": "user", "content": "Tell me about the river, please. " * 3}]]
    ids = _ids(model, device)

    def write(steps: int, rows: int) -> float:
        some = [asked[i % len(asked)] for i in range(rows // TO_A_PROMPT)]
        drawn = sampler.sample(some, TO_A_PROMPT, replace(asked_params, max_new_tokens=steps))
        return max(1, sum(len(sample.token_ids) for samples in drawn for sample in samples)) / steps

    def score(rows: int) -> float:
        with torch.no_grad():
            model.get_decoder()(input_ids=ids[:rows], use_cache=False)
        return rows * ROW_TOKENS

    whole, first = (two_sizes(partial(write, steps), SAMPLES[device.type], device) for steps in (STEPS + 1, 1))
    decode = Line(max(0.0, whole.fixed - first.fixed) / STEPS, max(0.0, whole.each - first.each) / STEPS)
    most = asked_params.max_new_tokens
    share = None
    if prompts and decode.seconds(most, most * len(prompts)) <= ENOUGH_ANSWERS:
        answers = [sample for drawn in sampler.sample(prompts, 1, asked_params) for sample in drawn]
        share = sum(len(answer.token_ids) for answer in answers) / (most * len(answers))
    return load, two_sizes(score, ROWS[device.type], device), decode, share


def _in_training(
    policy: str, adapter: Mapping[str, Any] | None, quantization: Literal["nf4"] | None, accelerator: Accelerator
) -> tuple[Line, Line | None]:
    """Of a forward and backward pass, by its tokens, without dropout as in PPO: seconds, and MiB between the two."""
    from rlhf.models.config import AdapterConfig
    from rlhf.models.packing import enable_packing, pack_rows
    from rlhf.models.policy import load_policy
    from rlhf.training.accelerator import frozen_dtype

    device = accelerator.device
    dtype = "float32" if adapter is None else frozen_dtype(device)
    lora = None if adapter is None else AdapterConfig(**{**adapter, "dropout": 0.0})
    model: Any = load_policy(policy, adapter=lora, quantization=quantization, dtype=dtype)
    model.to(device).train()
    packs = enable_packing(model if lora is None else model.get_base_model())
    ids = _ids(model, "cpu")
    taken: dict[float, float] = {}

    def train(rows: int) -> float:
        some, asked = ids[:rows], ROW_TOKENS // 2
        with accelerator.autocast():
            if packs:  # as stages run it; half of all tokens have logits in both
                inputs, asked = pack_rows(some, some.new_ones(some.shape)).to(device).inputs(), asked * rows
            else:
                inputs = {"input_ids": some.to(device), "use_cache": False}
            answers = model(**inputs, logits_to_keep=asked).logits
            loss = answers.float().logsumexp(-1).mean()
        taken[rows * ROW_TOKENS] = _memory_now(device)
        loss.backward()
        model.zero_grad()
        return rows * ROW_TOKENS

    seconds = two_sizes(train, ROWS[device.type], device)
    if len(taken) < 2 or not all(taken.values()):
        return seconds, None
    (few, less), (many, more) = sorted(taken.items())
    each = max(0.0, (more - less) / (many - few))
    return seconds, Line(less - few * each, each)


def _memory_now(device: Any) -> float:
    """MiB that this process has on its device; 0: the system does not say."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated() / 2**20
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _ids(model: Any, device: Any) -> Any:
    """(most of ROWS, ROW_TOKENS) int64."""
    import torch

    vocabulary, rows = model.config.get_text_config(decoder=True).vocab_size, max(ROWS[model.device.type])
    return torch.arange(rows * ROW_TOKENS, device=device).view(rows, ROW_TOKENS) % vocabulary


def seconds_of(act: Callable[[], object], device: Any) -> float:
    """Processor time of this process, or on a GPU wall time until it is done."""
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    if gpu:
        import torch

        torch.cuda.synchronize()
    begun = clock()
    act()
    if gpu:
        torch.cuda.synchronize()
    return clock() - begun


def two_sizes(act: Callable[[int], float], sizes: tuple[int, int], device: Any) -> Line:
    """Seconds by the things done, which `act` returns: of each size after one go to warm up.

    The first go of a size takes memory and looks for kernels, on a CPU in bfloat16 too.
    On a GPU the larger size is halved until memory holds it; where it is no slower the GPU was not filled, and only to
    start its work took time.
    """
    import torch

    gpu, (few, many) = device.type == "cuda", sizes
    warming = seconds_of(lambda: act(few), device)
    points = [_point(act, few, device)]
    while max(warming, points[0][1]) <= ENOUGH and many > few and len(points) == 1:
        try:
            act(many)
            points.append(_point(act, many, device))
        except torch.OutOfMemoryError:
            many //= 2
    if gpu and len(points) == 2 and points[1][1] <= points[0][1]:
        return Line(points[0][1], 0.0)
    return Line.through(points)


def _point(act: Callable[[int], float], size: int, device: Any) -> tuple[float, float]:
    """The things done, and the seconds."""
    done: list[float] = []
    seconds = seconds_of(lambda: done.append(act(size)), device)
    return done[0], seconds
