"""Memory and time of a PPO run before it is started, from the models' configs alone.

Weights, gradients and Adam's moments are counted. What comes and goes is measured: each phase runs on fake tensors
(torch's FakeTensorMode: shapes and types, no data) through the very models, adapters and losses of the run, while every
storage that lives is added up. Rows are taken to be as long as they may: `prompt_tokens + max_new_tokens`.

Not counted: the framework itself (on a GPU about 1 GiB), what the allocator wastes, and DeepSpeed's buckets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from rlhf.models.batching import BATCH_TOKENS
from rlhf.models.packing import has_plain_attention
from rlhf.models.policy import dtype_of
from rlhf.objectives.policy import entropy, token_logprobs
from rlhf.ppo.planning.fake import Live, make_fake
from rlhf.ppo.planning.hardware import Hardware
from rlhf.ppo.planning.models import FakeModels, Setting, bytes_of
from rlhf.sampling.decoding.cache import make_cache
from rlhf.sampling.memory import LOGITS, token_bytes

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Bytes on one device: `held` of each role through the whole run, `phases` on top of it; seconds of each phase.

    `held`: role -> {"weights", "optimizer"}; the gradients are in the update's phase. `tokens`: of an iteration, over
    all devices.
    """

    held: dict[str, dict[str, float]]
    phases: dict[str, float]
    seconds: dict[str, float]
    tokens: dict[str, int]

    @property
    def constant(self) -> float:
        """Bytes held through the whole run."""
        return sum(sum(parts.values()) for parts in self.held.values())

    @property
    def peak(self) -> float:
        """Bytes of the largest phase with all that is held."""
        return self.constant + max(self.phases.values())


def make_plan(setting: Setting, hardware: Hardware) -> Plan:
    """See this file's docstring; sizes the run on one device of the hardware."""
    with torch.device("meta"):
        models = FakeModels(setting, hardware)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for model in (models.policy, models.value):
            if model is not None:
                make_fake(model)
        phases = {
            "rollout": _rollout(models, setting, hardware),
            "scoring": _scoring(models, setting, hardware),
            "experience": _experience(models, setting, hardware),
            "update": _update(models, setting, hardware),
        }
        held = models.held()
        seconds, tokens = _time(models, setting, hardware)
    return Plan(held, phases, seconds, tokens)


def _peak(models: FakeModels, call: Callable[[], Any]) -> float:
    """Bytes that a call needs at most, beyond the weights."""
    live = Live()
    live.leave_out(models.policy, models.value)
    with live, models.autocast():
        call()
    return live.peak


def _kind(hardware: Hardware) -> Literal["cpu", "gpu"]:
    return "cpu" if hardware.mixed_precision == "no" else "gpu"


def _rows(setting: Setting, hardware: Hardware, rows: int) -> Tensor:
    return torch.zeros(rows, hardware.prompt_tokens + setting.max_new_tokens, dtype=torch.long)


def _answer_logprobs(models: FakeModels, ids: Tensor, name: str, with_entropy: bool) -> Tensor:
    """`rlhf.ppo.model.answer_logprobs` where all rows are of one length, so that packing them changes nothing."""
    answers, temperature = models.setting.max_new_tokens, models.setting.temperature
    with models.using(name):
        logits = models.policy(input_ids=ids, use_cache=False, logits_to_keep=answers + 1).logits[:, :-1]
    logprobs = token_logprobs(logits, ids[:, -answers:], temperature)
    if with_entropy:
        entropy(logits, temperature)
    return logprobs


def _rollout(models: FakeModels, setting: Setting, hardware: Hardware) -> float:
    """A prompt's cache once, each answer's keys and values, a token's logits; under autocast its copies of the weights,
    under ZeRO-3 the gathered ones. An engine has its own throughout."""
    if setting.engine is not None:
        return 0.0
    rows = models.drawn()[0]
    count = at_once = math.ceil(rows / setting.ppo.samples_per_prompt)
    options: dict[str, Any] = {}
    if has_plain_attention(models.policy):
        at_once = min(count, max(1, BATCH_TOKENS[_kind(hardware)] // hardware.prompt_tokens))
        options["past_key_values"] = make_cache(models.config)
    prompts = torch.zeros(at_once, hardware.prompt_tokens, dtype=torch.long)

    @torch.no_grad()
    def prefill() -> None:
        with models.using("policy"):
            models.policy(input_ids=prompts, use_cache=True, logits_to_keep=1, **options)

    models.policy.eval()
    prompt = hardware.prompt_tokens * _cache_bytes(models)
    prefilled = _peak(models, prefill) + (count - at_once) * prompt
    models.policy.train()
    text = models.config.get_text_config(decoder=True)
    decoded: int = rows * setting.max_new_tokens * _cache_bytes(models) + LOGITS * rows * text.vocab_size
    return models.gathered() + max(prefilled, models.copies() + count * prompt + decoded)


def _cache_bytes(models: FakeModels) -> int:
    """Of one token's keys and values in all layers."""
    half = models.hardware.mixed_precision == "bf16" or _computes_in_two_bytes(models.setting)
    return token_bytes(models.config, 2 if half else 4)


def _computes_in_two_bytes(setting: Setting) -> bool:
    """Whether the models compute in two bytes even without mixed precision."""
    return setting.quantization is not None or dtype_of(setting.dtype).itemsize == 2


def _scoring(models: FakeModels, setting: Setting, hardware: Hardware) -> float:
    """A reward model's forward pass over as many tokens as it takes at once, its layers gathered under ZeRO-3."""
    ids = _rows(setting, hardware, 1)
    ids = _rows(setting, hardware, max(1, BATCH_TOKENS[_kind(hardware)] // ids.shape[1]))

    @torch.no_grad()
    def score() -> None:
        models.policy.base_model(input_ids=ids, use_cache=False)

    if not setting.judges:
        return 0.0
    whole = [*models.own_judges.values(), *([bytes_of(models.policy)] if setting.shared else [])]
    return _peak(models, score) + models.fetched(max(whole))


def _experience(models: FakeModels, setting: Setting, hardware: Hardware) -> float:
    ids = _rows(setting, hardware, setting.ppo.optimizer.micro_batch_size)

    @torch.no_grad()
    def measure() -> None:
        _answer_logprobs(models, ids, "policy", with_entropy=True)
        if models.value is not None:
            with models.using("value"):
                models.value.token_scores(ids, torch.ones_like(ids))

    return _peak(models, measure) + models.fetched(models.trained_bytes())


def _update(models: FakeModels, setting: Setting, hardware: Hardware) -> float:
    """Forward and backward of one micro-batch, its layers gathered under ZeRO-3, and the gradients."""
    ids = _rows(setting, hardware, setting.ppo.optimizer.micro_batch_size)
    mask = torch.ones_like(ids)

    def step() -> None:
        parts = []
        if models.value is not None:
            with models.using("value"):
                if models.base is not None and not setting.ppo.optimizer.gradient_checkpointing:
                    parts.append(
                        checkpoint(
                            models.value.token_scores, ids, mask, use_reentrant=False, context_fn=models.base.recomputed
                        )
                    )
                else:
                    parts.append(models.value.token_scores(ids, mask))
        parts.append(_answer_logprobs(models, ids, "policy", with_entropy=False))
        sum(part.sum() for part in parts).backward()

    peak = _peak(models, step)
    alive = sum(p.grad.nbytes for p in _trained(models) if p.grad is not None)  # counted by _peak as they came
    return peak - alive + models.gradients() + models.fetched(models.trained_bytes())


def _time(models: FakeModels, setting: Setting, hardware: Hardware) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds and tokens of an iteration: matrix products at `efficiency`, decoding at the memory's bandwidth."""
    weights = sum(p.numel() for n, p in models.policy.named_parameters() if ".lora_" not in n) * (
        2 if setting.quantization else 1
    )
    text = models.config.get_text_config(decoder=True)
    matrices = weights if models.config.tie_word_embeddings else weights - text.vocab_size * text.hidden_size
    written = setting.ppo.batch_size * setting.max_new_tokens
    read = setting.ppo.batch_size * hardware.prompt_tokens
    tokens = {"written": written, "read": read + written}
    flops = hardware.devices * hardware.teraflops * 1e12 * hardware.efficiency
    forward = 2.0 * matrices * tokens["read"] / flops
    rows, every = models.drawn()
    cached = rows * (hardware.prompt_tokens + setting.max_new_tokens / 2) * _cache_bytes(models)
    if setting.engine is not None:
        cached /= setting.engine.gpus
    drawing = models.engine_weights() or bytes_of(models.policy)
    decoding = setting.max_new_tokens * (drawing + cached) / (hardware.gigabytes_per_second * 1e9)
    roles = 1 + models.setting.ppo.learns_value
    backward = 1.0 if models.base is not None else 2.0  # frozen weights have no gradient of their own
    again = 1.0 if setting.ppo.optimizer.gradient_checkpointing else 0.5 if models.base is not None else 0.0
    return {
        "rollout": math.ceil(every / rows) * decoding + forward * read / tokens["read"],
        "scoring": forward * len(setting.judges),
        "experience": forward * (1 + roles),
        "update": forward * roles * (1 + backward + again) * setting.ppo.optimizer.epochs,
    }, tokens


def _trained(models: FakeModels) -> list[nn.Parameter]:
    both = [*models.policy.parameters(), *(models.value.parameters() if models.value is not None else ())]
    return [p for p in {id(p): p for p in both}.values() if p.requires_grad]
