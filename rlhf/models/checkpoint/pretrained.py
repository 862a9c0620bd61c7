"""The one door to what others saved: transformers' `from_pretrained`, with which no code of a checkpoint's own runs.

Left to itself transformers asks on standard input whether such code may run, and a "y" that was meant for something
else answers it. Here the answer is no. An architecture that transformers has itself loads all the same.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.jsonl import read_json

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# On a CPU with AVX512-BF16 it warns at its import, in every process, that a faster kernel for 4 bit is not installed.


def without_values(folder: str | os.PathLike[str], dtype: Any) -> Any:
    """The causal LM of a checkpoint's config, its weights memory that nobody has written to, which takes none yet.

    For a process whose weights come from another one's. Buffers have their values.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(from_pretrained(AutoConfig, folder), dtype=dtype)
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(old, device="cpu"))
    model.tie_weights()
    return model.eval()


def from_pretrained(kind: Any, source: str | os.PathLike[str], field: str = "checkpoint", **options: Any) -> Any:
    """`kind.from_pretrained(source)` without the checkpoint's own code, its weights from safetensors alone.

    Args:
        kind: a class of transformers: AutoConfig, AutoTokenizer, AutoModelForCausalLM …
        source: folder or hub name.
        field: of the config, for messages.
        options: for transformers.

    Raises:
        InputError: there is no such checkpoint, its architecture is unknown to transformers (it would need its own
            code), its files do not fit together, or (a tokenizer) it fails at a text, as with settings of another type.
    """
    named = os.path.join(source, options["gguf_file"]) if "gguf_file" in options else source
    if "Model" in kind.__name__:
        options.setdefault("use_safetensors", True)
    try:
        loaded = kind.from_pretrained(source, trust_remote_code=False, **options)
    except InputError:
        raise
    except Exception as error:  # transformers, safetensors and the hub client raise many kinds, all about the files
        if own := _own_code(source):
            raise InputError(
                f"{field}: {source} needs code of its own ({own}), which is never run here; name a checkpoint of an "
                "architecture that transformers has itself"
            ) from error
        why = " ".join(str(error).split())[:200]
        if "ignore_mismatched_sizes" in why:  # what it means stands in a report of many lines
            why = "the weights have other shapes than its config.json says"
        raise InputError(
            f"{field}: {named} cannot be loaded ({why}); name another folder or hub name, or save it again"
        ) from error
    if "Tokenizer" in kind.__name__:
        try:
            loaded("a")
        except Exception as error:  # transformers looks at a setting where it uses it
            raise InputError(
                f"{field}: the tokenizer of {source} fails ({type(error).__name__}: {error}); mend its "
                "tokenizer_config.json, or save it again"
            ) from error
    return loaded


def _own_code(source: str | os.PathLike[str]) -> str | None:
    """What of a folder's own code its config, or else its tokenizer, names (`auto_map`)."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            auto_map = read_json(Path(source) / name).get("auto_map")
        except (OSError, ValueError, AttributeError):
            continue
        if auto_map:
            named = next(iter(auto_map.values())) if isinstance(auto_map, dict) else auto_map
            return str(named[0] or named[-1]) if isinstance(named, (list, tuple)) else str(named)
    return None
