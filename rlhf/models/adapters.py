"""LoRA adapters, on whole weights or over 4-bit ones (QLoRA): how they are made, merged, saved and loaded.

What policies and reward models share. A policy is wrapped by peft; a reward model has peft's layers put into its
backbone, so that its heads stay plain layers beside them. On disk both are peft adapters over a causal LM or over a
sequence classifier.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.errors import InputError
from rlhf.imports import require_packages
from rlhf.models.checkpoint.folder import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    ADAPTER_PREFIX,
    adapter_settings,
    base_folder,
    base_quantization,
    write_base_quantization,
)
from rlhf.models.config import AdapterConfig
from rlhf.models.coverage import OTHER_SENSES, READ_BY_WEIGHT
from rlhf.training.finite import require_finite

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def lora_config(
    adapter: AdapterConfig,
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    model: nn.Module,
    base: str | os.PathLike[str] | None = None,
) -> LoraConfig:
    """peft's settings of a new adapter on every linear layer of the language model but the head.

    On experts fused into one tensor too. Not on what sees or hears (`rlhf.models.coverage.OTHER_SENSES`): it is not
    trained here. Nor where it would be passed over (`READ_BY_WEIGHT`).

    Args:
        model: that it will be put into.
        base: folder of the model's checkpoint, to be saved.
    """
    require_packages("adapter: LoRA needs", "peft")
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # any number: peft divides it by r
        lora_dropout=adapter.dropout,
        target_modules="all-linear",
        target_parameters=_fused_experts(model) or None,
        exclude_modules=_not_adapted(model),
        task_type=task,
        base_model_name_or_path=os.fspath(base) if base is not None else None,
    )


def _fused_experts(model: nn.Module) -> list[str]:
    """The ends of the names of parameters (E, in, out) that hold a layer of E experts each."""
    return sorted(
        {
            ".".join(name.split(".")[-3:])
            for name, parameter in model.named_parameters()
            if parameter.ndim == 3 and name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
        }
    )


def _not_adapted(model: nn.Module) -> str | None:
    """A pattern of the names of linear layers that get no adapter; None: all get one."""
    router = r".*\.feed_forward\.router"  # Llama 4's: a linear layer that gives two things
    patterns = (READ_BY_WEIGHT, router, rf".*{OTHER_SENSES.pattern}.*")
    names = [name for name, _ in model.named_modules()]
    return "|".join(p for p in patterns if any(re.fullmatch(p, name) for name in names)) or None


def require_saved_size(folder: Path, adapter: AdapterConfig) -> None:
    """InputError where the adapter that a checkpoint holds is of another size than the one asked for."""
    saved = adapter_settings(folder)
    if (adapter.r, adapter.alpha) != (saved["r"], saved["lora_alpha"]):
        raise InputError(
            f"adapter: {folder} has r {saved['r']} and alpha {saved['lora_alpha']}, asked "
            f"are r {adapter.r} and alpha {adapter.alpha}; use the saved sizes, or merge it first"
        )


def saved_quantization(folder: Path, asked: Literal["nf4"] | None) -> Literal["nf4"] | None:
    """How to load the base of an adapter checkpoint; InputError where 4 bit is asked for and it was trained whole."""
    saved = base_quantization(folder)
    if asked is not None and saved is None:
        raise InputError(
            f"quantization: the adapter of {folder} was trained over whole weights, and in 4 bit they are others; "
            "leave it out, or merge the adapter first (recipes/merge_adapter.py)"
        )
    return saved


def is_quantized(model: Any) -> bool:
    """Whether a model of transformers, or one that peft wrapped, holds its weights in 4 bit."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_quantized", False))


def four_bit_dtype() -> torch.dtype:
    """What 4-bit weights compute in: bfloat16 on a GPU, float32 on a CPU, where few have instructions for the other."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def inject_adapter(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Put a new adapter into the layers of a model, in place; of all its parameters the adapter's alone are trained."""
    require_packages("adapter: LoRA needs", "peft")
    from peft import inject_adapter_in_model, prepare_model_for_kbit_training

    if is_quantized(model):
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with peft_sentences():
        inject_adapter_in_model(lora, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # whatever type the base computes in


def restore_adapter(model: PreTrainedModel, folder: Path, adapter: AdapterConfig | None) -> None:
    """Put the adapter of a checkpoint folder into the layers of a classifier, in place, to go on training or to score.

    The adapter of a causal LM fits too: the layers have the same names. Of `adapter` the dropout counts.
    """
    require_packages("adapter: LoRA needs", "peft")
    from peft import LoraConfig

    saved = {
        name.removeprefix(ADAPTER_PREFIX).replace(".weight", ".default.weight"): tensor
        for name, tensor in adapter_tensors(folder).items()
        if ".lora_" in name
    }
    with peft_sentences(folder / ADAPTER_FOLDER):
        lora = LoraConfig.from_pretrained(os.fspath(folder / ADAPTER_FOLDER))
        lora.task_type, lora.inference_mode = "SEQ_CLS", False
        if adapter is not None:
            lora.lora_dropout = adapter.dropout
        inject_adapter(model, lora)
        missing, unexpected = model.load_state_dict(saved, strict=False)
    wrong = [*unexpected, *(name for name in missing if ".lora_" in name)]
    if wrong:
        raise InputError(f"checkpoint: the adapter of {folder} does not fit its base at {wrong[0]}; save it again")


def saved_adapter(model: PreTrainedModel, folder: Path, *, trained: bool = False) -> Any:
    """The model, wrapped by peft, under the adapter whose files lie in a folder.

    Raises:
        InputError: they are damaged, of another base, or hold other tensors than their settings say: peft itself leaves
            out what it has no layer for, and draws at random what is not there.
    """
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    with peft_sentences(folder):
        wrapped = PeftModel.from_pretrained(model, folder, is_trainable=trained)
        found: Any = set_peft_model_state_dict(wrapped, load_peft_weights(os.fspath(folder), device="cpu"))
    wrong = [*found.unexpected_keys, *(name for name in found.missing_keys if ".lora_" in name)]
    if wrong:
        raise InputError(
            f"checkpoint: the adapter in {folder} does not fit the layers that its adapter_config.json names, at "
            f"{wrong[0]}; save it again"
        )
    return wrapped


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter in a checkpoint, by their names in the file; InputError where one is not finite."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(folder / ADAPTER_FOLDER / ADAPTER_FILE)
    require_finite(tensors.items(), folder, "name an earlier checkpoint, or train again with a lower learning rate")
    return tensors


def save_adapter(
    model: nn.Module,
    state: Mapping[str, Tensor],
    folder: Path,
    probe: Callable[[Any, Mapping[str, Tensor]], Tensor] | None,
    *,
    name: str = "default",
    config: LoraConfig | None = None,
    base: Any = None,
) -> None:
    """Write an adapter as peft does, and read it back.

    Args:
        model: in which the adapter is, whose parameters `state` names.
        state: the trained parameters by name: the adapter's, and those of a head beside it.
        probe: runs the model, see `rlhf.models.checkpoint.saving`; None: its weights are partitioned.
        name: of the adapter.
        config: peft's settings; default: those of the model itself.
        base: the model of transformers that holds the base; default: the model itself.

    Raises:
        InputError: a weight is not finite (nothing is written then), or what is read back differs.
    """
    from safetensors.torch import save_file

    base = model if base is None else base
    config = base.peft_config[name] if config is None else config
    way_out = "nothing was saved; lower the learning rate and train again"
    require_finite(state.items(), "the trained adapter", way_out)
    in_file = {key: ADAPTER_PREFIX + key.removeprefix(ADAPTER_PREFIX).replace(f".{name}.", ".") for key in state}
    tensors = {in_file[key]: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    config.save_pretrained(os.fspath(folder / ADAPTER_FOLDER))
    save_file(tensors, folder / ADAPTER_FOLDER / ADAPTER_FILE, metadata={"format": "pt"})
    write_base_quantization(folder, "nf4" if is_quantized(base) else None)

    def run(found: Mapping[str, Tensor]) -> Tensor:
        device = next(iter(state.values())).device
        return probe(model, {key: found[in_file[key]].to(device) for key in state})  # type: ignore[misc]

    read_back_adapter(folder, tensors, config, None if probe is None else run)


def read_back_adapter(
    folder: Path, state: Mapping[str, Tensor], config: LoraConfig, run: Callable[[Mapping[str, Tensor]], Tensor] | None
) -> None:
    """Compare the adapter just written with the one in memory: every tensor, peft's settings, and a probe.

    The base is not loaded again: training never changes it, and two of it may not fit. The probe runs the tensors that
    were read on the base in memory.

    Args:
        state: what was to be written, by the names in the file.
        config: peft's settings in memory.
        run: the probe's outputs with these tensors, by the names in the file, in the adapter's place; None: they are
            partitioned, and no process can run them alone.

    Raises:
        InputError: the first thing that differs, or the base has no folder that the adapter could be put on.
    """
    import torch
    from safetensors.torch import load_file

    found = load_file(folder / ADAPTER_FOLDER / ADAPTER_FILE)
    settings = {key: adapter_settings(folder).get(key) for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}
    names = found.keys() ^ state.keys()
    changed = [name for name, tensor in state.items() if name in found and not torch.equal(found[name], tensor)]
    changed += [key for key, value in settings.items() if value != getattr(config, key)]
    wrong = min(names) if names else next(iter(changed), None if state else "its tensors: there are none")
    if wrong is None and run is not None and not torch.equal(run(found), run(state)):
        wrong = "its outputs"
    if wrong is not None:
        raise InputError(
            f"checkpoint: the adapter in {folder} was read back and is not the one that was trained, at {wrong}; look "
            "for a full disk or a wrong ZeRO setting"
        )
    base_folder(folder)


@contextlib.contextmanager
def peft_sentences(saved: Path | None = None) -> Iterator[None]:
    """One sentence for what peft cannot do; no notes on patterns of its own making, or on names it still uses.

    Args:
        saved: folder of an adapter's files that are read: whatever peft and torch say of damaged ones, or of another
            base's, is one sentence too.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*_pattern keys did not match.*")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    except Exception as error:
        memory = "Memory" in type(error).__name__
        if isinstance(error, InputError) or memory or (saved is None and not isinstance(error, ValueError)):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if saved is not None:
            raise InputError(
                f"checkpoint: the adapter in {saved} does not fit its base, or is damaged ({said}); bring the base "
                "that it was trained on, or save it again"
            ) from error
        if "lora_dropout" in str(error):
            raise InputError(
                "adapter.dropout: this model's experts are fused into one tensor, on which an adapter has no dropout; "
                "set adapter.dropout to 0"
            ) from error
        raise InputError(f"adapter: peft refuses this model ({' '.join(str(error).split())[:200]})") from error


def merged_weights(base: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Whole weights W + scaling x B A under the base model's own names, computed from the (gathered) state dict.

    Those with an update are new, and on the CPU: a GPU often has no room for a second copy of all of them.

    Of experts fused into one tensor (E, out, in) or (E, in, out) each has its own factors: A is (E x r, in), the
    experts' one after the other, B is (out, r x E), the experts' side by side for each of the r.

    Args:
        base: the model that holds peft's layers.
        state: its state dict, each name with `prefix` before it.
    """
    merged = {
        name.removeprefix(prefix).replace(".base_layer", ""): tensor
        for name, tensor in state.items()
        if ".lora_" not in name
    }
    for module, layer in base.named_modules():
        if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
            continue
        plain = f"{module.replace('.base_layer', '')}.{getattr(layer, 'parameter_name', 'weight')}"
        a, b = (state[f"{prefix}{module}.lora_{x}.default.weight"].float() for x in "AB")
        weight = merged[plain]
        if weight.ndim == 3:
            experts = weight.shape[0]
            a, b = a.view(experts, -1, a.shape[-1]), b.view(b.shape[0], -1, experts).permute(2, 0, 1)
        update = layer.scaling["default"] * (b @ a)
        transposed = layer.fan_in_fan_out if weight.ndim == 2 else not layer._did_swap_in_out_features
        merged[plain] = (weight.float() + (update.mT if transposed else update)).to("cpu", weight.dtype)
    return merged
