"""How fast this machine is with a model, and how long its answers are: a few things done once, at two sizes each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.iteration.hours.speed import Line, Speed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlhf.conversation import Conversation
    from rlhf.sampling.protocol import SamplingParams

ENOUGH = 20.0
"""Seconds beyond which the second size of a measurement is left out."""
ENOUGH_ANSWERS = 30.0
"""Seconds beyond which no answers are written to learn how long they are."""
SAMPLES = (4, 16)
STEPS = 12
ROW_TOKENS = 128
ROWS = (1, 3)


def measure(
    policy: str, adapter: Mapping[str, Any] | None, prompts: Sequence[Conversation], params: SamplingParams
) -> tuple[Speed, float | None]:
    """Load, write, score and train with a model, each a little.

    Args:
        prompts: some of the run's, which are answered as it will, where that takes no longer than ENOUGH_ANSWERS.
        params: how.

    Returns:
        The speed, and the mean tokens of an answer over `params.max_new_tokens`; None: no answers were written.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load, score, decode, share = _as_it_is(Path(policy), device, prompts, params)
    return Speed(load, score, _in_training(policy, adapter, device), decode), share


def _as_it_is(
    policy: Path, device: Any, prompts: Sequence[Conversation], asked_params: SamplingParams
) -> tuple[float, Line, Line, float | None]:
    """Seconds of a load, of scoring by tokens, of a step of writing by answers; and `measure`'s share."""
    import torch

    from rlhf.sampling.opening import load_weights, open_sampler
    from rlhf.sampling.protocol import SamplingParams
    from rlhf.sampling.source import PolicySource

    source = PolicySource(checkpoint=policy)
    loaded: list[Any] = []
    load = seconds_of(lambda: loaded.append(load_weights(source, device)), device)
    model = loaded[0]
    sampler = open_sampler(source, device, model=model)
    asked: Conversation = [{"role": "user", "content": "Tell me about the river, please. " * 3}]
    params = SamplingParams(max_new_tokens=STEPS)
    ids = _ids(model, device)

    def write(rows: int) -> float:
        (drawn,) = sampler.sample([asked], rows, params)
        return max(1, sum(len(sample.token_ids) for sample in drawn)) / STEPS

    def score(rows: int) -> float:
        with torch.no_grad():
            model.get_decoder()(input_ids=ids[:rows], use_cache=False)
        return rows * ROW_TOKENS

    both = two_sizes(write, SAMPLES, device)
    decode = Line(both.fixed / STEPS, both.each / STEPS)
    most = asked_params.max_new_tokens
    share = None
    if prompts and decode.seconds(most, most * len(prompts)) <= ENOUGH_ANSWERS:
        answers = [sample for drawn in sampler.sample(prompts, 1, asked_params) for sample in drawn]
        share = sum(len(answer.token_ids) for answer in answers) / (most * len(answers))
    return load, two_sizes(score, ROWS, device), decode, share


def _in_training(policy: str, adapter: Mapping[str, Any] | None, device: Any) -> Line:
    """Seconds of a forward and backward pass by tokens, as the run trains."""
    from rlhf.models.config import AdapterConfig
    from rlhf.models.policy import load_policy
    from rlhf.training.accelerator import frozen_dtype

    dtype = "float32" if adapter is None else frozen_dtype(device)
    model: Any = load_policy(policy, adapter=None if adapter is None else AdapterConfig(**adapter), dtype=dtype)
    model.to(device).train()
    ids = _ids(model, device)

    def train(rows: int) -> float:
        answers = model(input_ids=ids[:rows], use_cache=False, logits_to_keep=ROW_TOKENS // 2).logits
        answers.float().logsumexp(-1).mean().backward()
        model.zero_grad()
        return rows * ROW_TOKENS

    return two_sizes(train, ROWS, device)


def _ids(model: Any, device: Any) -> Any:
    """(most of ROWS, ROW_TOKENS) int64."""
    import torch

    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return torch.arange(max(ROWS) * ROW_TOKENS, device=device).view(max(ROWS), ROW_TOKENS) % vocabulary


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
    """Seconds by the things done, which `act` returns: after one go to warm up, one of each size."""
    points = []
    warming = seconds_of(lambda: act(sizes[0]), device)
    for size in sizes if warming < ENOUGH else sizes[:1]:
        done: list[float] = []
        taken = seconds_of(lambda size=size, done=done: done.append(act(size)), device)  # type: ignore[misc]
        points.append((done[0], taken))
        if taken > ENOUGH:
            break
    return Line.through(points)
