"""Load and save a policy: a causal LM, whole, with a LoRA adapter, or with a LoRA adapter over 4-bit weights (QLoRA).

What is saved:

- whole weights: one folder that plain transformers loads.
- LoRA over unquantised weights: the same, W + (alpha / r) B A written in W's place. The model in memory is not touched
  (merging and unmerging in place would round its weights). Or, where asked for, the adapter alone.
- LoRA over NF4 weights: the adapter alone. Added to unquantised weights it would be another model than the one trained
  (RECIPE section 1, "two merges"), so nothing is merged here without being asked.

An adapter alone is what peft writes, in `adapter/`, beside the tokenizer, with a note on how its base was held;
`load_policy` puts it back on its base, in 4 bit or whole, which is exactly what was trained. So does plain peft:
`PeftModel.from_pretrained(base, folder/adapter)`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlhf.errors import InputError
from rlhf.models.adapters import (
    is_quantized,
    lora_config,
    merged_weights,
    require_qlora,
    require_saved_size,
    saved_quantization,
)
from rlhf.models.checkpoint import (
    ADAPTER_FOLDER,
    ADAPTER_PREFIX,
    HEAD_PREFIXES,
    base_folder,
    is_adapter_checkpoint,
    require_checkpoint,
    require_policy,
    weight_shapes,
    write_base_quantization,
)
from rlhf.models.config import AdapterConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

PAD_TOKEN = "<pad>"


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, padding right, with a pad token of its own.

    Where it has none, or pads with the end token (a model trained so never learns to stop), "<pad>" is added;
    `load_policy` gives it an embedding.
    """
    with _loading(require_checkpoint(path)) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.padding_side = "right"
    return tokenizer


def load_policy(
    path: str | os.PathLike[str],
    *,
    adapter: AdapterConfig | None = None,
    quantization: Literal["nf4"] | None = None,
    dtype: str = "float32",
) -> PreTrainedModel:
    """Load a causal LM for sampling (as it is, in eval mode) or for training (with `adapter`: only the adapter trains).

    Where the tokenizer's pad token has no embedding yet, one is added: the mean of all others, the same on every load.

    Args:
        path: checkpoint folder, whole or of an adapter saved by `save_policy` (its base is then loaded as it was in
            training, 4 bit or whole, and `adapter` only says that the saved one goes on training).
        adapter: put a new LoRA adapter on every linear layer but the head.
        quantization: "nf4" holds the linear layers in 4 bit, double quantised, computing in bfloat16 (bitsandbytes).
        dtype: of the weights that are not quantised.

    Raises:
        InputError: missing files or weights, a reward model, an adapter of other size than the saved one, 4 bit asked
            for where the saved one is over whole weights.
    """
    folder = require_policy(path)
    if is_adapter_checkpoint(folder):
        return _load_adapter_checkpoint(folder, adapter, saved_quantization(folder, quantization), dtype)
    model = load_base(folder, quantization, dtype)
    add_pad_embedding(model, load_tokenizer(folder))
    if adapter is None:
        return model.eval()
    return _with_adapter(model, adapter, quantized=quantization is not None)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[Path]:
    """One sentence for what transformers refuses: a config that is no JSON, an architecture that it does not know."""
    try:
        yield folder
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint: {folder} cannot be loaded ({why}); name another, or save it again") from error


def dtype_of(name: str) -> torch.dtype:
    """A floating-point type by its name; InputError for anything else."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype: must be float32, bfloat16 or float16, got {name!r}")
    return found


def load_base(
    folder: Path, quantization: str | None, dtype: str, kind: Any = AutoModelForCausalLM, **options: Any
) -> PreTrainedModel:
    """A model of `kind`, one of transformers' Auto classes, from whole weights; for the rest see `load_policy`.

    Raises:
        InputError: transformers cannot load it, or weights other than a classifier's head are missing (it would draw
            them at random, other ones at each load).
    """
    options["dtype"] = dtype_of(dtype)
    if quantization == "nf4":
        require_qlora("bitsandbytes")
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    elif quantization is not None:
        raise InputError(f"quantization: must be nf4 or none, got {quantization!r}")
    with quiet_transformers(), _loading(folder):
        model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(HEAD_PREFIXES))
    if lacking:
        raise InputError(f"checkpoint: {folder} lacks the weights {lacking[0]}; copy or save it again")
    for module in model.modules():
        # On CPUs with AVX512-BF16 an eval forward would repack these weights in place: wrong gradients ever after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def add_pad_embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the config the pad id, and add embedding rows (the mean of the old ones) up to the tokenizer's size."""
    old = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > old:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:
                    layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _with_adapter(model: PreTrainedModel, adapter: AdapterConfig, quantized: bool) -> PreTrainedModel:
    lora = lora_config(adapter, "CAUSAL_LM")
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, lora)


def _load_adapter_checkpoint(
    folder: Path, adapter: AdapterConfig | None, quantization: Literal["nf4"] | None, dtype: str
) -> PreTrainedModel:
    require_qlora("peft")
    from peft import PeftModel, prepare_model_for_kbit_training

    if adapter is not None:
        require_saved_size(folder, adapter)
    model = load_base(require_checkpoint(base_folder(folder)), quantization, dtype)
    add_pad_embedding(model, load_tokenizer(folder))
    if adapter is not None and quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = PeftModel.from_pretrained(model, folder / ADAPTER_FOLDER, is_trainable=adapter is not None)
    return model if adapter is not None else model.eval()


def save_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    accelerator: Accelerator | None = None,
    *,
    merge: bool = True,
) -> None:
    """Save a policy, in the form this file's docstring says. Every process calls it; the main one writes, all wait.

    Args:
        model: as loaded or as `accelerator.prepare` returned it; weights partitioned by ZeRO-3 are gathered.
        merge: `AdapterConfig.merge`: False saves an adapter over whole weights alone.

    Raises:
        InputError: 4-bit weights without an adapter (nothing was trained), or a written file that is not whole.
    """
    model = accelerator.unwrap_model(model) if accelerator is not None else model
    folder = Path(folder)
    is_main = accelerator is None or accelerator.is_main_process
    has_adapter = hasattr(model, "peft_config")
    quantized = is_quantized(model)
    adapter_alone = has_adapter and (quantized or not merge)
    if quantized and not has_adapter:
        raise InputError(
            "save_policy: the model is in 4 bit and has no adapter, so nothing was trained; copy the checkpoint instead"
        )
    state = whole_state_dict(model, keep=is_main, only_trainable=adapter_alone)
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        with quiet_transformers():
            if adapter_alone:
                model.save_pretrained(folder / ADAPTER_FOLDER, state_dict=state, save_embedding_layers=False)
                write_base_quantization(folder, "nf4" if quantized else None)
            elif has_adapter:
                base = model.get_base_model()
                base.save_pretrained(folder, state_dict=merged_weights(base, state, ADAPTER_PREFIX))
            else:
                model.save_pretrained(folder, state_dict=state)
        verify_saved(folder)
    if accelerator is not None:
        accelerator.wait_for_everyone()


def whole_state_dict(model: nn.Module, *, keep: bool = True, only_trainable: bool = False) -> dict[str, Tensor]:
    """The state dict with partitioned parameters (DeepSpeed ZeRO-3) gathered one by one; empty where not `keep`.

    Every process must call it. Plain models: the tensors themselves, not copies.
    """
    partitioned = any(hasattr(p, "ds_id") for p in model.parameters())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    if not partitioned:
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


def verify_saved(folder: Path) -> None:
    """Raise InputError unless the weights just written are there, readable, and no tensor is empty (trl issue 4416)."""
    shapes = weight_shapes(folder)
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
