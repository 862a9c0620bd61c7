"""Whole weights are written in the type that they came in, and read back before they count as saved.

Training holds float32 weights, whatever the checkpoint it started from held: a small step added to a bfloat16 weight
would often be lost. What is written is cast back, so that a checkpoint of 269 MB comes out as one of 269 MB.

Read back means: plain transformers loads the folder; it finds every tensor, and no other; each is, bit for bit, what
memory held after the cast; and one probe, a few fixed rows of token ids, gives the logits (or scores) of the model in
memory. The main process does so, on the CPU, in the type that was written: the memory of one such copy.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from rlhf.errors import InputError
from rlhf.models.checkpoint.context import Context
from rlhf.models.checkpoint.folder import HEAD_PREFIXES, weight_shapes, weight_types
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.training.finite import require_finite

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
"""Most difference of a probe, as a share of what it is (median over positions), by the coarser of the types that the
weights have in memory and on disk. Measured on chat models: 1e-6 in float32, 0.02 in bfloat16; lost weights give 1."""

Probe = Callable[..., Tensor]
"""Model, and weights by name to run it with in place of its own -> (positions, features) float32 on the CPU, of fixed
rows of token ids."""


@dataclass(frozen=True)
class SourceTypes:
    """The types that a checkpoint's weights had on disk: those by name, and that of most for names it has not."""

    by_name: Mapping[str, torch.dtype]
    default: torch.dtype

    @classmethod
    def of_folder(cls, folder: Path) -> SourceTypes:
        """From the headers of its weight files."""
        found = {name: dtype for name, dtype in weight_types(folder).items() if dtype in _TYPES}
        sizes: Counter[str] = Counter()
        for name, shape in weight_shapes(folder).items():
            if name in found:
                sizes[found[name]] += int(torch.Size(shape).numel())
        default = _TYPES[sizes.most_common(1)[0][0]] if sizes else torch.float32
        return cls({name: _TYPES[dtype] for name, dtype in found.items()}, default)

    def of(self, name: str) -> torch.dtype:
        """Heads of reward models are float32 wherever they come from."""
        return torch.float32 if name.startswith(HEAD_PREFIXES) else self.by_name.get(name, self.default)


_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def remember_source(model: nn.Module, source: SourceTypes) -> None:
    """Note on a model in which types `write_whole` is to write it."""
    model._source_types = source  # type: ignore[assignment]


def source_types(model: nn.Module) -> SourceTypes | None:
    """What `remember_source` noted; None for a model that came from no checkpoint, which is written as it is."""
    return getattr(model, "_source_types", None)


def as_written(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in the types that it is written in; tied weights stay one tensor.

    Where these are other types than the model's, on the CPU: beside what trained them, a GPU often has no room for a
    second copy of all weights.
    """
    source = source_types(model)
    if source is None:
        return dict(state)
    cast: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
    written = {}
    for name, tensor in state.items():
        dtype = source.of(name) if tensor.is_floating_point() else tensor.dtype
        key = (tensor.data_ptr(), tensor.shape, dtype)
        if key not in cast:
            cast[key] = tensor.to("cpu", dtype)
        written[name] = cast[key]
    return written


def write_whole(
    model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path, kind: Any, probe: Probe, want: Tensor | None
) -> None:
    """Write whole weights with their config as plain transformers loads them, and read them back.

    Args:
        model: whose class and config they are of, without an adapter's layers counting.
        state: its gathered weights, under the names of `model` without adapter.
        kind: the Auto class that loads them.
        probe: what is compared.
        want: `probe` of the model in memory; None: it is taken from `state` put into the model's class.

    Raises:
        InputError: a weight is not finite (nothing is written then), or what is read back differs.
    """
    written = as_written(model, state)
    require_finite(written.items(), "the trained model", "nothing was saved; lower the learning rate and train again")
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=dict(written))  # it empties the one that it is given
    _mend_config(folder, source_types(model))
    read_back(folder, written, kind, probe, want, model)


def read_back(
    folder: Path,
    state: Mapping[str, Tensor],
    kind: Any,
    probe: Probe,
    want: Tensor | None,
    model: PreTrainedModel | None = None,
) -> None:
    """Load a written folder by plain transformers and compare; see this file's docstring.

    Args:
        state: the weights as they were written.
        kind, probe, want: see `write_whole`.
        model: the one in memory; None: it is `state` alone.

    Raises:
        InputError: the first thing that differs.
    """
    with quiet_transformers():
        loaded, info = from_pretrained(kind, folder, dtype="auto", output_loading_info=True)
    loaded.eval()
    found: dict[str, Tensor] = loaded.state_dict()
    tied = set(loaded.all_tied_weights_keys)
    names = {*info["missing_keys"], *info["unexpected_keys"], *(found.keys() ^ state.keys()) - tied}
    changed = (name for name, tensor in found.items() if name in state and not _same(tensor, state[name]))
    wrong = min(names) if names else next(changed, None)
    if wrong is None:
        got = probe(loaded)
        memory = loaded if model is None else model
        want = probe(_rebuilt(memory, state, loaded)) if want is None else want
        limit = max(TOLERANCE.get(dtype, 0.1) for dtype in (loaded.dtype, memory.dtype))
        difference = probe_difference(want, got)
        if not difference <= limit:
            wrong = f"its outputs (they differ by {difference:.2g} of their size, {limit:g} is allowed)"
    if wrong is not None:
        raise InputError(
            f"checkpoint: {folder} was read back and is not the model that was trained, at {wrong}; look for a full "
            "disk, or for a model that transformers saves otherwise than it loads"
        )


def probe_difference(want: Tensor, got: Tensor) -> float:
    """Median over positions of |want - got| as a share of |want|, features centred where there are several."""
    want, got = want.double(), got.double()
    if want.shape != got.shape:
        return float("inf")
    if want.shape[-1] > 1:
        want, got = want - want.mean(-1, keepdim=True), got - got.mean(-1, keepdim=True)
        size = want.norm(dim=-1).clamp(min=1e-9)
    else:
        size = want.norm(dim=-1).clamp(min=1.0)  # a score may be near 0
    return float(((want - got).norm(dim=-1) / size).median())


def probe_ids(config: Any, rows: int = 1, length: int = 16) -> Tensor:
    """(rows, length) int64, spread over the vocabulary; the pad token is not among them."""
    text = config.get_text_config(decoder=True)
    length = Context.of(config).limit(length) or length
    ids = torch.arange(1, rows * length + 1) * max(text.vocab_size // (rows * length + 1), 1) % text.vocab_size
    pad = config.pad_token_id
    return torch.where(ids == (-1 if pad is None else pad), (ids + 1) % text.vocab_size, ids).view(rows, length)


def probe_logits(model: Any, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits of one row, (16, vocabulary) float32 on the CPU: the `Probe` of a causal LM, wrapped by peft or not."""
    return _run(model, weights, {"input_ids": probe_ids(model.config), "use_cache": False})[0]


def probe_scores(model: Any, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Outputs of four rows, (4, labels) float32 on the CPU: the `Probe` of a sequence classifier.

    Its head is run in its own type, which may be float32 over a backbone that is held in bfloat16.
    """
    head, inputs = getattr(model, "score", None), {"input_ids": probe_ids(model.config, rows=4)}
    if not isinstance(head, nn.Linear):
        return _run(model, weights, inputs)
    hook = head.register_forward_pre_hook(lambda module, given: (given[0].to(module.weight.dtype),))
    try:
        return _run(model, weights, inputs)
    finally:
        hook.remove()


@torch.no_grad()
def _run(model: Any, weights: Mapping[str, Tensor] | None, inputs: Mapping[str, Any]) -> Tensor:
    device = next(model.parameters()).device
    placed = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    with evaluating(model), in_own_precision(model):
        logits: Tensor = functional_call(model, dict(weights or {}), kwargs=placed).logits
    return logits.float().cpu()


@contextlib.contextmanager
def in_own_precision(model: nn.Module) -> Iterator[None]:
    """Forward passes in the type of the weights, as what is read back on the CPU computes: without the autocast that
    accelerate puts into a model that it prepares, and on a GPU without TF32, whose products differ by 1e-3."""
    own, precision = vars(model), torch.get_float32_matmul_precision()
    autocast = own["forward"] if "_original_forward" in own else None
    if autocast is not None:
        own["forward"] = own["_original_forward"]
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if autocast is not None:
            own["forward"] = autocast


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def is_partitioned_model(model: nn.Module) -> bool:
    """Whether ZeRO-3 holds the weights: then they cannot run on one process."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _rebuilt(trained: PreTrainedModel, state: Mapping[str, Tensor], loaded: Any) -> nn.Module:
    """The weights of `state` in a new model of the trained one's class and config: no file takes part.

    Buffers that are not saved come from the loaded model, and so do weights that are tied.
    """
    with torch.device("meta"):
        model: nn.Module = type(trained)(copy.deepcopy(trained.config))
    buffers = dict(loaded.named_buffers())
    dtype = loaded.dtype
    whole = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    model.load_state_dict({n: t.cpu() for n, t in whole.items()}, strict=False, assign=True)
    model.tie_weights()  # type: ignore[operator]
    for name, buffer in buffers.items():
        module, _, key = name.rpartition(".")
        if key in model.get_submodule(module)._buffers:
            model.get_submodule(module)._buffers[key] = buffer
    return model.eval()


def _same(found: Tensor, state: Tensor) -> bool:
    """Whether shape and values are the same, in the type that was loaded."""
    return found.shape == state.shape and torch.equal(found, state.detach().to(found.device, found.dtype))


def _mend_config(folder: Path, source: SourceTypes | None) -> None:
    """Name in config.json the type that was written, where transformers puts the one that memory holds; name no code
    of the checkpoint's own (`auto_map`): it was not run, and does not come along."""
    file = folder / "config.json"
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("auto_map", None)
    if source is not None:
        name = str(source.default).removeprefix("torch.")
        for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
            if "dtype" in part:
                part["dtype"] = name
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def whole_state_dict(model: nn.Module, *, keep: bool = True, only_trainable: bool = False) -> dict[str, Tensor]:
    """The state dict with partitioned parameters (DeepSpeed ZeRO-3) gathered one by one; empty where not `keep`.

    Every process must call it. Plain models: the tensors themselves, not copies.
    """
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    if not is_partitioned_model(model):
        state = model.state_dict() if keep else {}
        return {name: t for name, t in state.items() if not only_trainable or name in trainable}
    import deepspeed

    gathered: dict[str, Tensor] = {}
    first_name: dict[int, str] = {}  # tied weights stay one tensor, or both would be written
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if only_trainable and name not in trainable:
            continue
        if id(parameter) in first_name:
            if keep:
                gathered[name] = gathered[first_name[id(parameter)]]
            continue
        first_name[id(parameter)] = name
        with deepspeed.zero.GatheredParameters([parameter]):
            if keep:
                gathered[name] = parameter.detach().cpu().clone()
    if keep and not only_trainable:
        for name, tensor in model.state_dict().items():
            if name not in gathered and tensor.numel() and name in dict(model.named_buffers()):
                gathered[name] = tensor
    return gathered


def verify_saved(folder: str | os.PathLike[str]) -> None:
    """Raise InputError unless the weights just written are there, readable, and no tensor is empty (trl issue 4416)."""
    shapes = weight_shapes(Path(folder))
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if not shapes or empty:
        raise InputError(
            f"checkpoint: {folder} was written without {'weights' if not shapes else empty[0]}; "
            "look for a full disk or a wrong ZeRO setting"
        )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its notes on heads that are meant to be new; we check what matters."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
