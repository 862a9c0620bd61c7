"""The average of several models' weights: one model, at the cost of one. Of reward models, or of policies.
Light: torch is loaded when called.

Sources: Ramé et al. 2024 (WARM, arXiv 2401.12187) for reward models, Ramé et al. 2024 (WARP, arXiv 2406.16768) for
policies. They average models that were trained from ONE start, with other orders of the rows, other settings or other
data; weights of different origin average to nothing. Heads are averaged with the rest, so reward models should also
share the seed of their heads, or all go on from one reward model.

With LoRA a model's update is a product B A, and the mean of products is not the product of means. Where LoRA was merged
the products are in the saved weights, whose mean is right. Adapters saved alone become one adapter with the given
factors side by side: exact at the sum of their ranks, or cut to the nearest one of a lower rank.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from rlhf.errors import InputError
from rlhf.models.adapters import adapter_tensors
from rlhf.models.checkpoint.folder import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    SAFETY_HEAD_FILE,
    adapter_settings,
    base_folder,
    base_quantization,
    head_shapes,
    is_adapter_checkpoint,
    json_object,
    require_policy,
    require_reward_head,
    weight_files,
    weight_shapes,
)
from rlhf.models.policy import load_tokenizer
from rlhf.stage import write_json
from rlhf.stage.card import CARD_FILE
from rlhf.training.finite import require_finite

if TYPE_CHECKING:
    from torch import Tensor

OF_ONE_ALONE = ("*.safetensors", "*.safetensors.index.json", CARD_FILE)
SETTINGS_THAT_MAY_DIFFER = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"}


def average_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
) -> None:
    """Write the checkpoint whose weights are the weighted mean of those of `checkpoints`, heads included.

    Sums are float32; a tensor is written in the type that it has in the first checkpoint.

    Args:
        checkpoints: reward models, or policies, of one architecture with one tokenizer, all whole, or all adapters over
            the same base, in 4 bit or whole.
        output: folder to write; it must not exist.
        weights: one a checkpoint, above 0; they are divided by their sum. None: all the same.
        rank: of the adapter that is written; None: the sum of the ranks, which loses nothing.

    Raises:
        InputError: a checkpoint is not of the first one's kind, two of them differ, or an argument does not fit them.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    from rlhf.models.checkpoint.saving import verify_saved
    from rlhf.models.reward_model import save_safety_head

    folders = [Path(checkpoint) for checkpoint in checkpoints]
    shares = _shares(len(folders), weights)
    if Path(output).exists():
        raise InputError(f"output: {output} exists already; name another")
    of_policies = not head_shapes(folders[0])
    for folder in folders:
        (require_policy if of_policies else require_reward_head)(folder)
        _require_alike(folders[0], folder)
    adapters = [adapter_settings(folder) for folder in folders] if is_adapter_checkpoint(folders[0]) else []
    ranks = sum(settings["r"] for settings in adapters)
    if rank is not None and not 1 <= rank <= ranks:
        way_out = f"give 1 to {ranks}, the sum of the adapters' ranks" if adapters else "whole weights have none"
        raise InputError(f"rank: cannot be {rank}; {way_out}")

    partial = Path(f"{os.fspath(output)}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folders[0], partial, ignore=shutil.ignore_patterns(*OF_ONE_ALONE))
    if adapters:
        _average_adapters(folders, shares, rank, partial)
    else:
        sources = [_open_tensors(folder) for folder in folders]
        state = {name: _mean([tensors[name].get_tensor(name) for tensors in sources], shares) for name in sources[0]}
        require_finite(state.items(), "the average", "nothing was saved; look at the checkpoints that are averaged")
        save_torch_state_dict(state, partial)
        read_back_policy(partial, state) if of_policies else read_back_average(partial, state)
    if (folders[0] / SAFETY_HEAD_FILE).is_file():
        heads = [load_file(folder / SAFETY_HEAD_FILE) for folder in folders]
        save_safety_head({name: _mean([h[name] for h in heads], shares) for name in heads[0]}, partial)
    verify_saved(partial)
    os.replace(partial, output)


def read_back_average(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Compare what plain transformers loads with the averages in memory; the scores are those of RewardModel too."""
    from transformers import AutoModelForSequenceClassification

    from rlhf.models.checkpoint.saving import probe_scores, read_back
    from rlhf.models.reward_model import RewardModel

    want = probe_scores(RewardModel.load(folder).model)
    read_back(folder, state, AutoModelForSequenceClassification, probe_scores, want)


def read_back_policy(folder: Path, state: Mapping[str, Tensor]) -> None:
    """The same of a policy, whose logits are those of the averages put into its class."""
    from transformers import AutoModelForCausalLM

    from rlhf.models.checkpoint.saving import probe_logits, read_back

    read_back(folder, state, AutoModelForCausalLM, probe_logits, None)


def _shares(n: int, weights: Sequence[float] | None) -> list[float]:
    weights = [1.0] * n if weights is None else list(weights)
    if n < 2:
        raise InputError(f"checkpoints: an average takes two or more, got {n}")
    if len(weights) != n or not all(0 < weight < float("inf") for weight in weights):
        raise InputError(f"weights: must be {n} numbers above 0, one a checkpoint, got {weights}")
    return [weight / sum(weights) for weight in weights]


def _require_alike(first: Path, other: Path) -> None:
    """InputError where the weights of two checkpoints do not mean the same, naming what differs."""
    different: str | None = None
    settings = [json_object(base_folder(f) / "config.json") for f in (first, other)]
    keys = sorted((settings[0].keys() | settings[1].keys()) - SETTINGS_THAT_MAY_DIFFER)
    tokenizers = [load_tokenizer(folder) for folder in (first, other)]
    shapes = [weight_shapes(folder) for folder in (first, other)]
    adapters = [is_adapter_checkpoint(folder) for folder in (first, other)]
    if adapters[0] != adapters[1]:
        different = "one is an adapter"
    elif adapters[0] and base_quantization(first) != base_quantization(other):
        different = "one adapter is over 4-bit weights"
    elif adapters[0] and base_folder(first).resolve() != base_folder(other).resolve():
        different = f"the adapters are over {base_folder(first)} and {base_folder(other)}"
    elif changed := [key for key in keys if settings[0].get(key) != settings[1].get(key)]:
        different = f"config.json, {changed[0]}"
    elif shapes[0].keys() != shapes[1].keys() or (not adapters[0] and shapes[0] != shapes[1]):
        different = "names or shapes of the weights"
    elif tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        different = "the tokenizer"
    elif tokenizers[0].chat_template != tokenizers[1].chat_template:
        different = "the chat template"
    elif len({(folder / SAFETY_HEAD_FILE).is_file() for folder in (first, other)}) == 2:
        different = "one has no safety head"
    if different is not None:
        raise InputError(
            f"checkpoints: {first} and {other} cannot be averaged ({different}); name models trained from one start"
        )


def _open_tensors(folder: Path) -> dict[str, Any]:
    """Tensor name -> open file that holds it; nothing is read yet."""
    files = [safe_open(file, framework="pt") for file in weight_files(folder)]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    mean = sum(share * tensor.float() for share, tensor in zip(shares, tensors, strict=True))
    return mean.to(tensors[0].dtype)  # type: ignore[union-attr]


def _average_adapters(folders: Sequence[Path], shares: Sequence[float], rank: int | None, output: Path) -> None:
    """The adapter with sum over i of share_i x alpha_i / r_i x B_i A_i as its update, and averaged heads."""
    import torch
    from safetensors.torch import load_file, save_file

    settings = [adapter_settings(folder) for folder in folders]
    sources = [load_file(folder / ADAPTER_FOLDER / ADAPTER_FILE) for folder in folders]
    scales = [share * s["lora_alpha"] / s["r"] for share, s in zip(shares, settings, strict=True)]
    averaged = {}
    for name in sources[0]:
        if name.endswith(".lora_A.weight"):
            other = name.replace(".lora_A.", ".lora_B.")
            a = torch.cat([tensors[name].float() for tensors in sources])
            b = torch.cat([scale * tensors[other].float() for scale, tensors in zip(scales, sources, strict=True)], 1)
            averaged[other], averaged[name] = (b, a) if rank is None else _nearest_of_rank(b, a, rank)
        elif ".lora_" not in name:
            averaged[name] = _mean([tensors[name] for tensors in sources], shares)
    whole = {name: tensor.contiguous() for name, tensor in averaged.items()}
    require_finite(whole.items(), "the average", "nothing was saved; look at the checkpoints that are averaged")
    save_file(whole, output / ADAPTER_FOLDER / ADAPTER_FILE, metadata={"format": "pt"})
    size = rank or sum(s["r"] for s in settings)
    write_json(output / ADAPTER_FOLDER / "adapter_config.json", settings[0] | {"r": size, "lora_alpha": size})
    found = adapter_tensors(output)
    if found.keys() != whole.keys() or not all(torch.equal(found[name], whole[name]) for name in whole):
        raise InputError(f"checkpoint: the adapter in {output} was not written whole; look for a full disk")


def _nearest_of_rank(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (out, rank) and (rank, in) of the matrix of that rank nearest to b a: its singular value decomposition.

    Found from the factors' QR decompositions: b a, as large as the layer, is never made.
    """
    import torch

    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s[:rank].sqrt()
    left, right = (q_b @ u[:, :rank]) * root, root[:, None] * (v[:rank] @ q_a.T)
    missing = rank - len(root)  # of a layer smaller than the rank
    pad = torch.nn.functional.pad
    return pad(left, (0, missing)).float(), pad(right, (0, 0, 0, missing)).float()
