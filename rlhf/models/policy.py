"""Load and save a policy: a causal LM, whole, with a LoRA adapter, or with a LoRA adapter over 4-bit weights (QLoRA).
Light: torch and transformers are loaded when called.

What is saved:

- whole weights: one folder that plain transformers loads, in the type that they came in, and that stops where the chat
  template ends an answer (`rlhf.models.ending`).
- LoRA over unquantised weights: the same, W + (alpha / r) B A written in W's place. The model in memory is not touched
  (merging and unmerging in place would round its weights). Or, where asked for, the adapter alone.
- LoRA over NF4 weights: the adapter alone. Added to unquantised weights it would be another model than the one trained
  (decision 11), so nothing is merged here without being asked.

Every save is read back and compared with the model in memory (`rlhf.models.checkpoint.saving`).

An adapter alone is what peft writes, in `adapter/`, beside the tokenizer, with a note on how its base was held;
`load_policy` puts it back on its base, in 4 bit or whole, which is exactly what was trained. So does plain peft:
`PeftModel.from_pretrained(base, folder/adapter)`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from safetensors import safe_open

from rlhf.conversation import apply_kwargs, given_kwargs
from rlhf.errors import InputError, quoted
from rlhf.imports import require_packages
from rlhf.models.adapters import (
    adapter_tensors,
    four_bit_dtype,
    is_quantized,
    lora_config,
    merged_weights,
    peft_sentences,
    require_saved_size,
    save_adapter,
    saved_adapter,
    saved_quantization,
)
from rlhf.models.checkpoint.folder import (
    ADAPTER_FOLDER,
    ADAPTER_PREFIX,
    HEAD_PREFIXES,
    adapter_files,
    base_folder,
    is_adapter_checkpoint,
    is_reward_model,
    require_checkpoint,
    require_policy,
    weight_files,
)
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.config import AdapterConfig
from rlhf.models.coverage import (
    OTHER_SENSES,
    READ_BY_WEIGHT,
    adapter_coverage,
    quantization_coverage,
    say_coverage,
)
from rlhf.models.ending import say_how_to_stop
from rlhf.training.finite import require_finite

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAD_TOKEN = "<pad>"
HARMLESS = re.compile(
    r"^(lm_head|embed_out|output_layer|cls)\.|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$"
    rf"|{OTHER_SENSES.pattern}"
)
"""Weights that may be left over: a language model's head where a classifier is made, buffers of older releases that are
computed anew, and the other senses of a model that only reads here."""


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, padding right, with a pad token of its own, and in a policy's template what the stage
    was told of it (`chat_template_kwargs`).

    Where it has none, or pads with the end token (a model trained so never learns to stop), "<pad>" is added;
    `load_policy` gives it an embedding.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, require_checkpoint(path))
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.padding_side = "right"
    kwargs = given_kwargs()
    if kwargs and tokenizer.chat_template and not is_reward_model(path):
        with contextlib.suppress(InputError):  # a template that does not do: whoever renders by it says so
            apply_kwargs(tokenizer, kwargs)
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
        quantization: "nf4" holds the linear layers in 4 bit, double quantised (bitsandbytes); see `four_bit_dtype`.
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
        model.eval()
        return model
    return _with_adapter(model, adapter, quantized=quantization is not None)


def dtype_of(name: str) -> torch.dtype:
    """A floating-point type by its name; InputError for anything else."""
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype: must be float32, bfloat16 or float16, got {name!r}")
    return found


def load_base(folder: Path, quantization: str | None, dtype: str, kind: Any = None, **options: Any) -> PreTrainedModel:
    """A model of `kind`, one of transformers' Auto classes (None: a causal LM), from whole weights; for the rest see
    `load_policy`.

    Raises:
        InputError: transformers cannot load it; weights other than a classifier's head are missing (it would draw them
            at random, other ones at each load), or there are some that its config has no place for; one is not finite.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    from rlhf.models.checkpoint.saving import SourceTypes, quiet_transformers, remember_source

    options["dtype"] = dtype_of(dtype)
    if quantization == "nf4":
        require_packages("quantization: 4 bit needs", "bitsandbytes")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=four_bit_dtype(),
            llm_int8_skip_modules=_kept_whole(options.get("config") or from_pretrained(AutoConfig, folder)),
        )
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    elif quantization is not None:
        raise InputError(f"quantization: must be nf4 or none, got {quantization!r}")
    model: PreTrainedModel
    with quiet_transformers():
        model, info = from_pretrained(kind or AutoModelForCausalLM, folder, output_loading_info=True, **options)
    require_fitting(folder, info)
    way_out = "name an earlier checkpoint, or train again with a lower learning rate"
    require_finite(model.state_dict().items() if quantization is None else stored_tensors(folder), folder, way_out)
    remember_source(model, SourceTypes.of_folder(folder))
    for name, parameter in model.named_parameters():
        if OTHER_SENSES.search(name):
            parameter.requires_grad_(False)  # texts alone give it no gradient, which data parallel would wait for
    if quantization is not None:
        say_coverage("quantization", "nf4", quantization_coverage(model))
    modules: Iterable[Any] = model.modules()
    for module in modules:
        # On CPUs with AVX512-BF16 an eval forward would repack these weights in place: wrong gradients ever after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _kept_whole(config: Any) -> list[str] | None:
    """Patterns of the layers that 4 bit leaves whole; None: the head alone, as transformers does by itself."""
    mixes = any("mamba" in name or name.endswith("state_size") for name in config.to_dict())
    return [r".*lm_head", "score", READ_BY_WEIGHT] if mixes else None


def require_fitting(folder: Path, info: Mapping[str, Any]) -> None:
    """InputError where a checkpoint's weights and the model of its config do not belong together.

    Args:
        info: what transformers says of the loading. A classifier's head may be missing (a new one is drawn), and a
            policy's head be left over.
    """
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(HEAD_PREFIXES))
    if lacking:
        raise InputError(f"checkpoint: {folder} lacks the weights {lacking[0]}; copy or save it again")
    left_over = sorted(name for name in info["unexpected_keys"] if not HARMLESS.search(name))
    if left_over:
        raise InputError(
            f"checkpoint: the config.json of {folder} has no place for the weights {left_over[0]}"
            f"{f' and {len(left_over) - 1} more' if left_over[1:] else ''}; bring the config that they were saved with"
        )


def require_loadable(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """InputError where a policy's whole weights, its config and its tokenizer do not belong together.

    Reads no weight: the model is made without storage. One that is quantised already is not looked at.

    Args:
        folder: of a causal LM's whole weights; an adapter's base.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlhf.models.checkpoint.saving import quiet_transformers

    if getattr(from_pretrained(AutoConfig, folder), "quantization_config", None):
        return
    with quiet_transformers():
        model, info = from_pretrained(AutoModelForCausalLM, folder, output_loading_info=True, device_map="meta")
    require_fitting(folder, info)
    add_pad_embedding(model, tokenizer)


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint's weight files one by one: what 4 bit makes of a weight does not show a NaN."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def add_pad_embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the config the pad id, and add embedding rows (the mean of the old ones) up to the tokenizer's size.

    Raises:
        InputError: the tokenizer has ids beyond these (`require_embeddings`).
    """
    import torch

    old = len(model.get_input_embeddings().get_parameter("weight"))
    if len(tokenizer) > old:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:
                    weight = layer.get_parameter("weight")
                    weight[old:] = weight[:old].float().mean(0).to(weight.dtype)
    require_embeddings(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def require_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """InputError where a tokenizer writes ids, its pad token's left out, that the model has no embedding of."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is None:
        return
    beyond = {n: token for token, n in tokenizer.get_vocab().items() if n >= rows and token != tokenizer.pad_token}
    if beyond:
        first = min(beyond)
        raise InputError(
            f"checkpoint: the tokenizer of {tokenizer.name_or_path} has the token {quoted(beyond[first])} with id "
            f"{first}, and the model embeds {rows}; bring the tokenizer that it was trained with"
        )


def _with_adapter(model: PreTrainedModel, adapter: AdapterConfig, quantized: bool) -> PreTrainedModel:
    lora = lora_config(adapter, "CAUSAL_LM", model)
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with peft_sentences():
        model = cast("PreTrainedModel", get_peft_model(model, lora))  # its wrapper answers to all that the model does
    say_coverage("adapter", "a LoRA adapter", adapter_coverage(model))
    return model


def _load_adapter_checkpoint(
    folder: Path, adapter: AdapterConfig | None, quantization: Literal["nf4"] | None, dtype: str
) -> PreTrainedModel:
    require_packages("adapter: LoRA needs", "peft")
    from peft import prepare_model_for_kbit_training
    from transformers import GenerationConfig

    if adapter is not None:
        require_saved_size(folder, adapter)
    model = load_base(require_checkpoint(base_folder(folder)), quantization, dtype)
    add_pad_embedding(model, load_tokenizer(folder))
    if adapter is not None and quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if (folder / "generation_config.json").is_file():
        model.generation_config = from_pretrained(GenerationConfig, folder)
    adapter_tensors(folder)  # each is finite
    wrapped = saved_adapter(model, folder / ADAPTER_FOLDER, trained=adapter is not None)
    return cast("PreTrainedModel", wrapped if adapter is not None else wrapped.eval())


def load_over(
    path: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    *,
    quantization: Literal["nf4"] | None = None,
    dtype: str = "float32",
) -> PreTrainedModel:
    """A whole checkpoint with a saved adapter on it, in eval mode.

    Args:
        path: checkpoint folder of whole weights, whose tokenizer counts.
        adapter: folder that peft wrote, or a checkpoint of an adapter (whose own base is not looked at).
        quantization, dtype: of the checkpoint's weights, see `load_policy`.

    Raises:
        InputError: as `load_policy`; the adapter is none, was trained over weights held otherwise, or does not fit.
    """
    require_packages("adapter: LoRA needs", "peft")
    folder = adapter_files(adapter)
    held = saved_quantization(Path(adapter), quantization) if is_adapter_checkpoint(adapter) else quantization
    model = load_policy(path, quantization=held, dtype=dtype)
    return cast("PreTrainedModel", saved_adapter(model, folder).eval())


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
        InputError: 4-bit weights without an adapter (nothing was trained), weights that are not finite (nothing is
            written), or what is read back is not what is in memory.
    """
    from transformers import AutoModelForCausalLM

    from rlhf.models.checkpoint.saving import (
        is_partitioned_model,
        probe_logits,
        verify_saved,
        whole_state_dict,
        write_whole,
    )

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
        base: Any = model.get_base_model() if has_adapter else model  # type: ignore[operator]
        say_how_to_stop(base, tokenizer)
        tokenizer.save_pretrained(folder)
        runs = not is_partitioned_model(model)
        if adapter_alone:
            base.generation_config.save_pretrained(folder)
            save_adapter(model, state, folder, probe_logits if runs else None)
        else:
            whole = merged_weights(base, state, ADAPTER_PREFIX) if has_adapter else state
            want = probe_logits(model) if runs else None
            write_whole(base, whole, folder, AutoModelForCausalLM, probe_logits, want)
        verify_saved(folder)
    if accelerator is not None:
        accelerator.wait_for_everyone()
