"""An engine whose policy goes on being trained: it is given the newest weights before it draws again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from rlhf.errors import notice
from rlhf.http_client import JsonClient, RequestFailed
from rlhf.models.checkpoint.folder import ADAPTER_FOLDER, base_folder, is_adapter_checkpoint
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.policy import dtype_of
from rlhf.sampling.engine.process import EngineProcess
from rlhf.sampling.engine.sampler import REQUEST_SECONDS, EngineSampler
from rlhf.sampling.engine.weights import ADAPTER_NAME, require_laid, served
from rlhf.sampling.memory import token_bytes
from rlhf.sampling.opening import Opening
from rlhf.sampling.source import PolicySource

BLOCK = 128  # tokens that an engine's cache gives out at a time, at most: a row's last block is part empty


class FollowingEngine(EngineSampler):
    """Draws from the checkpoints of one training, one after another.

    An adapter is loaded into the running engine under a new name, and the one before it is dropped; for whole weights
    the engine is started anew. It lives beside the training, so that its cache holds the rows asked for and no more.

    Args:
        source: of the training's start. `rows` must be set: how many answers are written side by side.
        opening: see `EngineSampler`.

    Raises:
        InputError: see `EngineSampler`.
    """

    def __init__(self, source: PolicySource, opening: Opening) -> None:
        assert source.rows is not None, "how much memory it takes follows from it"
        self._rows = source.rows
        self._held = source.folder  # what the running engine draws from
        super().__init__(source, opening)

    def follow(self, checkpoint: Path) -> None:
        """Draw from this checkpoint, of the same training, from the next call on; it must stay until the one after."""
        self._source = replace(self._source, checkpoint=checkpoint)

    def _running(self, longest: int) -> EngineProcess:
        if self._process is not None and self._held != self._source.folder:
            self._give_newest(self._process, self._source.folder)
        return super()._running(longest)

    def _give_newest(self, process: EngineProcess, checkpoint: Path) -> None:
        """The engine holds the checkpoint afterwards, or is gone, and starts on it."""
        if not is_adapter_checkpoint(checkpoint):
            self.close()
            self._quiet = True
            return
        name = f"{ADAPTER_NAME}-{checkpoint.name}"
        try:
            with JsonClient(process.url, who=self._field, timeout=REQUEST_SECONDS, retries=0) as client:
                adapter = {"lora_name": name, "lora_path": str((checkpoint / ADAPTER_FOLDER).absolute())}
                client.ask_now("v1/load_lora_adapter", adapter, is_json=False)
                client.ask_now("v1/unload_lora_adapter", {"lora_name": self._model}, is_json=False)
        except RequestFailed:
            if (death := process.death()) is None:
                raise
            self._process = None
            notice(f"{death}; it is started again")
            return
        self._model, self._held = name, checkpoint

    def _start(self, longest: int) -> EngineProcess:
        checkpoint = self._source.folder
        if is_adapter_checkpoint(checkpoint):
            require_laid(checkpoint, self._config, self._field, self._no_adapter_because)
        process = self._started(served(self._source, self._opening.field, self._dtype), longest)
        self._held, self._quiet = checkpoint, False
        return process

    def _settings(self, longest: int) -> tuple[dict[str, Any], dict[str, str]]:
        options, variables = super()._settings(longest)
        config = from_pretrained(AutoConfig, base_folder(self._source.folder))
        size = cache_bytes(config, dtype_of(self._dtype).itemsize, self._rows, longest, room=self._longest)
        size = math.ceil(size / self._config.gpus)
        options["kv_cache_memory_bytes"] = min(size, options.get("kv_cache_memory_bytes", size))
        return options, variables | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def cache_bytes(config: PretrainedConfig, itemsize: int, rows: int, longest: int, room: int = 0) -> int:
    """What an engine that lives beside a training takes for keys and values.

    Args:
        config: the model's.
        itemsize: bytes of a number.
        rows: answers written side by side, each of `longest` tokens with its prompt.
        room: tokens of one sequence that it must have room for.
    """
    return max(rows * (longest + BLOCK), room + BLOCK) * token_bytes(config, itemsize)
