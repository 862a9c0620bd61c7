"""`rlhf push`: a checkpoint with its card to the hub, whole or an adapter, a policy or a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.models.checkpoint.folder import ADAPTER_FOLDER, adapter_settings, is_adapter_checkpoint, require_checkpoint
from rlhf.paths import HUB_NAME
from rlhf.stage.card import CARD_FILE, read_metadata, with_metadata


def push(checkpoint: Path, name: str, *, private: bool = False, base: str | None = None) -> str:
    """Upload a checkpoint as one commit, to a repository that is made where there is none; returns its address.

    What names a folder of this machine stays here: an adapter's base is named as the hub calls it, and peft's own card,
    which names the folder, is left out.

    Args:
        name: org/name on the hub.
        private: make the repository private; one that is there already stays as it is.
        base: hub name of the model that this one came from, for the card and for an adapter; None: what the card says.

    Raises:
        InputError: it is no checkpoint, a name is not org/name, an adapter's base has no hub name, there is no token,
            or the hub refuses.
    """
    for option, value in (("name", name), ("base", base)):
        if value is not None and HUB_NAME.fullmatch(value) is None:
            raise InputError(f"{option}: must be org/name, as on the hub, got {value!r}")
    if (checkpoint / "checkpoint").is_dir():
        raise InputError(f"checkpoint: {checkpoint} is the folder of a stage; name {checkpoint / 'checkpoint'}")
    require_checkpoint(checkpoint)
    metadata = read_metadata(checkpoint)
    bases = [base] if base is not None else metadata.get("base_model") or []
    bases = [bases] if isinstance(bases, str) else bases
    if is_adapter_checkpoint(checkpoint) and not bases:
        raise InputError(
            f"base: {checkpoint} is an adapter over {adapter_settings(checkpoint)['base_model_name_or_path']}, which "
            "nobody else has; name that model as the hub does, with --base org/name"
        )
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise InputError("push: there is no token of the hub's; `hf auth login`, or set HF_TOKEN")
    api = huggingface_hub.HfApi()
    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo, content)
        for path_in_repo, content in files_to_push(checkpoint, metadata, bases).items()
    ]
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.create_commit(name, operations, commit_message="Upload by rlhf push")
    except Exception as error:  # of the hub's, of the network's, of files': each has kinds of its own
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"push: {name} could not be written ({why}); may the token write there?") from error
    return str(address)


def files_to_push(checkpoint: Path, metadata: dict[str, Any], bases: list[str]) -> dict[str, Path | bytes]:
    """Path in the repository -> file, or its content where that is another than here."""
    peft_s = checkpoint / ADAPTER_FOLDER / CARD_FILE
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path != peft_s]
    found: dict[str, Path | bytes] = {path.relative_to(checkpoint).as_posix(): path for path in files}
    if bases:
        text = (checkpoint / CARD_FILE).read_text(encoding="utf-8") if CARD_FILE in found else ""
        found[CARD_FILE] = with_metadata(text, metadata | {"base_model": bases}).encode()
    if is_adapter_checkpoint(checkpoint):
        settings = adapter_settings(checkpoint) | {"base_model_name_or_path": bases[0]}
        found[f"{ADAPTER_FOLDER}/adapter_config.json"] = json.dumps(settings, indent=2).encode()
    return found
