"""Weights that DeepSpeed ZeRO-3 divides: how they are, in one piece for sampling, frozen; plain models pass through.

Generating with partitioned weights gathers every layer again for every token, 10 to 90 times slower (trl issue 1900).
Here they are gathered once, used by a twin that has no DeepSpeed hooks, and freed.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import nn

from rlhf.errors import InputError

Model = TypeVar("Model", bound=nn.Module)
MIXED_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_partitioned(accelerator: Accelerator) -> bool:
    """Whether prepared models have their weights partitioned (ZeRO-3)."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return False
    return int(accelerator.state.deepspeed_plugin.zero_stage) == 3


def refuse_4_bit(accelerator: Accelerator) -> None:
    """InputError where weights in 4 bit would have to be partitioned (ZeRO-3)."""
    if is_partitioned(accelerator):
        raise InputError(
            "quantization: weights in 4 bit cannot be partitioned (DeepSpeed ZeRO-3); launch plain data parallel "
            "(accelerate launch --multi_gpu), or leave quantization out"
        )


def holds_4_bit(model: nn.Module) -> bool:
    """Whether some weights are bitsandbytes' in 4 bit."""
    return any(hasattr(parameter, "quant_state") for parameter in model.parameters())


class WholeModel(Generic[Model]):
    """`model` to run without gradients, with the current weights of `source` inside `gathered()`.

    Make it before `source` is prepared. Outside ZeRO-3 `model` is `source` itself and nothing is copied; under it
    `model` is a twin that owns no memory until its weights are gathered.
    """

    def __init__(self, source: Model, accelerator: Accelerator) -> None:
        if holds_4_bit(source):
            refuse_4_bit(accelerator)
        self.source = source
        self.accelerator = accelerator
        self.partitioned = is_partitioned(accelerator)
        self.model = _hollow_twin(source) if self.partitioned else source

    @contextmanager
    def gathered(self) -> Iterator[Model]:
        """Every process enters and leaves together; the weights must not be changed inside."""
        if not self.partitioned:
            yield self.model
            return
        import deepspeed

        _move_buffers(self.model, self.accelerator.device)
        with deepspeed.zero.GatheredParameters(list(self.source.parameters())):
            _fill(self.model, self.source)
            try:
                yield self.model
            finally:
                _fill(self.model, None)


def prepare_frozen(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A model that only runs forward, without gradients: on the device, its weights partitioned under ZeRO-3.

    Its weights get the type that DeepSpeed gives the trained ones; its buffers, as rotary frequencies, keep theirs. Run
    it inside `accelerator.autocast()`.
    """
    model.requires_grad_(False)
    model.eval()
    if not is_partitioned(accelerator):
        _cast(model, accelerator)
        return model.to(accelerator.device)
    import deepspeed

    divide(model, accelerator)
    engine: nn.Module = deepspeed.initialize(model=model, config=_frozen_settings(model, accelerator))[0]
    engine.eval()
    return engine


def divide(model: nn.Module, accelerator: Accelerator) -> None:
    """Leave each process its share of a model's weights, in the type that DeepSpeed trains in (ZeRO-3; else nothing).

    One tensor after another goes to the device, as the main process has it: neither there nor in the machine's memory
    do two models lie whole that are divided as they are loaded. Left to itself DeepSpeed moves a model whole to each
    device, and divides it there. Every process calls it; the next call for the same model does nothing.
    """
    if not is_partitioned(accelerator) or all(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return
    import deepspeed

    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    if any(other != shapes for other in gather_object([shapes])):
        raise RuntimeError("the processes have different models to divide, and would wait for one another")
    _let_go()
    _cast(model, accelerator)
    deepspeed.zero.Init(module=model, config_dict_or_path=_frozen_settings(model, accelerator))
    _move_buffers(model, accelerator.device)


def fill_sizes(zero: dict[str, Any], model: nn.Module) -> None:
    """What DeepSpeed's `zero_optimization` leaves open or "auto", by the model's width.

    accelerate would look for it in `model.config`, which a module around a model does not have.
    """
    shapes = [shape_of(parameter) for parameter in model.parameters()]
    # a transformer's hidden size: no matrix of it has two sides that are longer, but for square ones
    width = max((min(shape) for shape in shapes if len(shape) == 2), default=1)
    sizes = {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }
    for key, size in sizes.items():
        if zero.get(key, "auto" if zero["stage"] == 3 else None) == "auto":
            zero[key] = size


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Of the whole weight, of which this process may have but a share."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _cast(model: nn.Module, accelerator: Accelerator) -> None:
    """Weights in the type that DeepSpeed trains in; without it as they are."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision in MIXED_DTYPES:
        for parameter in model.parameters():
            if parameter.is_floating_point() and not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(MIXED_DTYPES[accelerator.mixed_precision])


def _let_go() -> None:
    """Free the shares of models that nobody needs any more: DeepSpeed remembers each that it has run, in circles."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    FWD_MODULE_STACK.clear()  # no forward pass is under way
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():  # a cache of all models' layers is in one
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
    gc.collect()


def _frozen_settings(model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
    """DeepSpeed's for a model that nobody trains, whether one is trained beside it or not."""
    settings = _without_auto(accelerator.state.deepspeed_plugin.deepspeed_config)
    for name in ("optimizer", "scheduler", "train_batch_size", "gradient_accumulation_steps"):
        settings.pop(name, None)
    zero = settings["zero_optimization"]
    zero.pop("offload_optimizer", None)
    if zero.get("offload_param", {}).get("device") == "cpu":
        zero["offload_param"].setdefault("pin_memory", torch.cuda.is_available())
    fill_sizes(zero, model)
    return {**settings, "train_micro_batch_size_per_gpu": 1}


def _without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's settings that somebody has set."""
    found = {name: _without_auto(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    return {name: value for name, value in found.items() if value != "auto"}


def settle(model: nn.Module) -> None:
    """Call after forward passes without a backward: ZeRO-3 has then fetched weights for a backward that never comes.

    Gathering or saving weights that are still on their way fails. Models that are not partitioned are left alone.
    """
    if hasattr(model, "empty_partition_cache") and model.zero_optimization_stage() == 3:  # type: ignore[operator]
        model.empty_partition_cache()  # type: ignore[operator]


def _hollow_twin(source: Model) -> Model:
    """A copy of the module tree and its buffers whose parameters are on the meta device."""
    hollow: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty(shape_of(p), dtype=p.dtype, device="meta"), requires_grad=False)
        for p in source.parameters()
    }
    return copy.deepcopy(source, hollow).eval()


def _fill(twin: nn.Module, source: nn.Module | None) -> None:
    """Let the twin's parameters share the source's storage (None: let go of it)."""
    for name, module in twin.named_modules():
        for key, old in module._parameters.items():
            if old is not None:
                weight = torch.empty_like(old, device="meta") if source is None else _parameter(source, name, key)
                module._parameters[key] = nn.Parameter(weight.data, requires_grad=False)


def _parameter(source: nn.Module, module: str, key: str) -> torch.Tensor:
    parameter: torch.Tensor = source.get_submodule(module)._parameters[key]  # type: ignore[assignment]
    return parameter


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for child in module.modules():
        for key, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[key] = buffer.to(device)
