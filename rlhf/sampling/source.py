"""A policy that answers: which one, how it is held, and who draws its answers. Light: no torch.

    policy: runs/demo/sft/checkpoint                                       # a bare text is the checkpoint
    policy: {checkpoint: models/llama2-7b-chat, quantization: nf4, rows: 64}
    policy: {checkpoint: models/llama2-7b-chat, server: {url: http://localhost:8000/v1, model: llama2-7b-chat}}

On a command line that is `--policy FOLDER --policy.quantization nf4`. Every recipe that draws answers from a policy, or
scores with its probabilities, takes it as a `PolicySource`; `rlhf.sampling.opening.open_sampler` makes a sampler of it.
Who draws is a backend: a line in `BACKENDS`, or the import path of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from rlhf.errors import InputError
from rlhf.imports import import_object
from rlhf.models.checkpoint.context import Context
from rlhf.models.checkpoint.folder import adapter_files, is_adapter_checkpoint, require_checkpoint
from rlhf.paths import NamesModel, require_files
from rlhf.sampling.chat import ServerConfig
from rlhf.shorthand import BARE
from rlhf.stage import Effect

ENVIRONMENT = Path(".venv-vllm")
"""Folder of the Python environment that `make vllm` makes."""
OWN_OPTIONS = (
    "model", "host", "port", "uds", "served_model_name", "api_key", "dtype", "max_num_seqs", "enable_lora",
    "lora_modules", "max_lora_rank", "logprobs_mode", "generation_config", "enable_scale_out", "tokens_only",
    "headless", "config", "root_path",
)  # fmt: skip
"""Of `vllm serve`, what follows from the source or must be as it is here."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """An inference engine that the stage starts on the policy, uses and stops.

    Args:
        name: which one; a bare text in this group's place is it.
        environment: folder of the Python environment in which it is installed; null: .venv-vllm in the working
            directory or beside the library, where `make vllm` makes it.
        options: of its command `vllm serve`, with underscores, such as {gpu_memory_utilization: 0.6}.
    """

    name: Annotated[Literal["vllm"], BARE] = "vllm"
    environment: Annotated[Path | None, Effect.NONE] = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name is None:
            raise InputError("name: must be vllm, got null; leave out the engine for none")
        for option in self.options:
            if option.startswith("-") or "-" in option:
                way_out = option.lstrip("-").replace("-", "_")
                raise InputError(f"options: name it without dashes, {way_out}, got {option}")
            if option.removeprefix("no_") in OWN_OPTIONS:
                raise InputError(f"options: {option} is set by the stage itself; leave it out")

    @property
    def gpus(self) -> int:
        """Over which it divides the weights."""
        return self._size("tensor_parallel_size", "pipeline_parallel_size")

    @property
    def devices(self) -> int:
        """GPUs that it takes: as many for each copy of the weights that it holds."""
        return self.gpus * self._size("data_parallel_size", "prefill_context_parallel_size")

    def _size(self, *names: str) -> int:
        return math.prod(size for name in names if isinstance(size := self.options.get(name, 1), int))

    def command(self, where: str) -> Path:
        """The file of its command.

        Args:
            where: the field of this group, for messages.

        Raises:
            InputError: it is not installed there.
        """
        beside = Path(__file__).resolve().parents[2] / ENVIRONMENT
        places = [ENVIRONMENT, beside] if self.environment is None else [self.environment]
        for place in places:
            if (file := place.absolute() / "bin" / self.name).is_file():
                return file
        raise InputError(
            f"{where}: there is no {self.name} in {places[0]}; make that environment by `make vllm`, or name one that "
            f"has it with --{where}.environment FOLDER"
        )


@dataclass(frozen=True, kw_only=True)
class PolicySource:
    """A policy that answers. A bare text in its place is the checkpoint.

    Args:
        checkpoint: its folder, whole weights or an adapter that knows its base; where a server answers, its tokenizer
            alone is read (null: only texts are wanted of the server).
        adapter: folder of a LoRA adapter over that checkpoint, peft's or one of ours; null: none.
        dtype: of the weights that are not in 4 bit; null: that of the mixed precision, which is bfloat16 on a GPU that
            computes in it, else float32.
        quantization: nf4 holds the weights in 4 bit; null: as they are (the base of an adapter as it was trained).
        rows: answers written at once; null: as many as memory holds, and no more than pay.
        compile: decode in compiled steps of a fixed shape, on a GPU captured as graphs.
        server: an OpenAI-compatible server that answers as this policy; null: its weights do, here.
        engine: an inference engine that this stage starts on the checkpoint and stops, `vllm`; null: none.
        backend: who draws: in_process, server, engine, or `package.module:function` of your own (docs/policies.md);
            null: the engine or the server where there is one, else this process.
        backend_options: options of a backend of your own.
    """

    checkpoint: Annotated[Path | None, BARE, NamesModel()] = None
    adapter: Annotated[Path | None, NamesModel()] = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    quantization: Literal["nf4"] | None = None
    rows: Annotated[int | None, Effect.ROUNDING] = None
    compile: Annotated[bool, Effect.ROUNDING] = False
    server: ServerConfig | None = None
    engine: EngineConfig | None = None
    backend: str | None = None
    backend_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise InputError(f"rows: must be at least 1, got {self.rows}")

    @property
    def is_named(self) -> bool:
        """Whether it says whose answers are meant; without that it holds but options, for a checkpoint to come."""
        return self.checkpoint is not None or self.server is not None

    @property
    def backend_name(self) -> str:
        """Of the backend that draws."""
        if self.engine is not None:
            return self.backend or "engine"
        return self.backend or ("in_process" if self.server is None else "server")

    @property
    def name(self) -> str:
        """In tables and rows: the server's model, or the checkpoint's folder."""
        return str(self.checkpoint) if self.server is None else self.server.model

    @property
    def folder(self) -> Path:
        """The checkpoint, of a field whose type asks for one."""
        if self.checkpoint is None:
            raise InputError("checkpoint: must be given here; the answers' tokens are read, not their texts alone")
        return self.checkpoint

    @property
    def context(self) -> Context:
        """Of the checkpoint's weights; where a server answers, its context is not known, and none is assumed."""
        return Context.of_checkpoint(self.folder) if self.server is None else Context(None)

    def trained(self, checkpoint: Path) -> PolicySource:
        """What a fine-tuning made of it, held as it was saved, its weights answering in this process."""
        return PolicySource(checkpoint=checkpoint, dtype=self.dtype, rows=self.rows, compile=self.compile)


@dataclass(frozen=True)
class Backend:
    """Who draws a policy's answers.

    Args:
        make: import path of a function of (PolicySource, `rlhf.sampling.opening.Opening`) that gives a `Sampler`.
        takes: the options of a source that it heeds, beside its checkpoint; another one that is set is refused.
            None: it says itself what it does not take.
        reads_weights: it loads the checkpoint's weights on this machine.
    """

    make: str
    takes: tuple[str, ...] | None = None
    reads_weights: bool = True


BACKENDS = {
    "in_process": Backend(
        "rlhf.sampling.in_process:open_in_process", ("adapter", "dtype", "quantization", "rows", "compile")
    ),
    "server": Backend("rlhf.sampling.server:open_server", ("server",), reads_weights=False),
    "engine": Backend("rlhf.sampling.engine.sampler:open_engine", ("engine", "adapter", "dtype", "rows")),
}
"""A new backend is one file and a line here."""


def backend_of(source: PolicySource, where: str = "policy") -> Backend:
    """The backend of a source, checked to take what the source says.

    Args:
        where: the source's field, for messages.

    Raises:
        InputError: there is none of that name, its import fails, or it does not heed an option that is set.
    """
    name = source.backend_name
    if ":" in name:
        import_object(f"{where}.backend", name)
        return Backend(name)
    if name not in BACKENDS:
        raise InputError(
            f"{where}.backend: must be {', '.join(BACKENDS)}, or package.module:function of your own, got {name!r}"
        )
    backend = BACKENDS[name]
    if name == "server" and source.server is None:
        raise InputError(f"{where}.server: must be given for the backend server, e.g. --{where}.server.url ADDRESS")
    if name == "engine" and source.engine is None:
        raise InputError(f"{where}.engine: must be given for the backend engine, e.g. --{where}.engine vllm")
    defaults = PolicySource()
    for option in (f.name for f in fields(source) if f.name not in ("checkpoint", "backend", *(backend.takes or ()))):
        if getattr(source, option) != getattr(defaults, option):
            why = "the server decides that itself" if name == "server" else f"the backend {name} does not heed it"
            raise InputError(f"{where}.{option}: {why}; leave it out, or name another {where}.backend")
    return backend


Needs = Literal["texts", "tokens", "weights", "training"]


class PolicyCheck:
    """At a field of a `PolicySource`: what is read of it is there and whole. See `rlhf.stage.fields.InputCheck`.

    Args:
        needs: the texts of its answers; their tokens too (a server alone does not do, its tokenizer must be there);
            its weights, in this process (a server does not do); or it is fine-tuned after it has answered.
    """

    def __init__(self, needs: Needs = "texts") -> None:
        self.needs = needs

    def inputs(self, field: str, value: PolicySource, config: Any) -> Mapping[str, Path]:
        """The checkpoint under the field's own name, and the adapter's folder."""
        if not value.is_named and _may_be_absent(field, config):
            return {}
        if value.checkpoint is None and (self.needs != "texts" or value.server is None):
            way_out = f"name its folder with --{field}"
            way_out += ", or a server that answers" if self.needs == "texts" else ""
            raise InputError(f"{field}: must be given; {way_out}")
        backend = backend_of(value, field)
        if self.needs == "weights" and not backend.reads_weights:
            raise InputError(
                f"{field}.server: its probabilities are read here, which a server does not give; leave it out"
            )
        if value.engine is not None and self.needs == "weights":
            raise InputError(f"{field}.engine: its probabilities are read here, no answers drawn; leave it out")
        if value.engine is not None and value.backend_name == "engine":
            value.engine.command(f"{field}.engine")
        if self.needs == "training" and value.adapter is not None:
            raise InputError(
                f"{field}.adapter: the checkpoint is trained after it answered; name the merged one instead"
            )
        found: dict[str, Path] = {}
        if value.checkpoint is not None:
            require_files(**{field: value.checkpoint})
            if backend.reads_weights or self.needs == "training":
                require_checkpoint(value.checkpoint)
            found[field] = value.checkpoint
        if value.adapter is not None:
            require_files(**{f"{field}.adapter": value.adapter})
            if is_adapter_checkpoint(found.get(field, "")):
                raise InputError(f"{field}.adapter: {value.checkpoint} is an adapter already; name its base beside it")
            adapter_files(value.adapter)
            found[f"{field}.adapter"] = value.adapter
        return found

    def require_memory(self, field: str, value: PolicySource, config: Any, processes: Any) -> None:
        """See `rlhf.stage.fields.MemoryCheck`."""
        from rlhf.models.checkpoint.memory import held_bytes, require_memory, trained_bytes
        from rlhf.training.accelerator import frozen_dtype

        if value.checkpoint is None:
            return
        if self.needs == "training":
            adapter, quantization = (getattr(config, name, None) for name in ("adapter", "quantization"))
            size = trained_bytes(value.checkpoint, adapter=adapter is not None, quantization=quantization)
            require_memory({field: size}, processes)
        engine = value.engine if value.backend_name == "engine" else None
        if backend_of(value, field).reads_weights and (engine is None or "quantization" not in engine.options):
            dtype = value.dtype or frozen_dtype(processes.device)
            size = held_bytes(value.checkpoint, quantization=value.quantization, dtype=dtype)
            require_memory({field: size / (1 if engine is None else engine.gpus)}, processes, trained=False)


def _may_be_absent(field: str, config: Any) -> bool:
    """Whether the config does without the field; then options alone, as in a step's YAML, name nobody."""
    return any(each.name == field.rpartition(".")[2] and each.default is None for each in fields(config))


def named(source: PolicySource | None) -> PolicySource | None:
    """A source that a config does without; None also where it has options but names nobody."""
    return source if source is not None and source.is_named else None


AnsweringPolicy = Annotated[PolicySource, PolicyCheck()]
TokenizedPolicy = Annotated[PolicySource, PolicyCheck("tokens")]
ScoringPolicy = Annotated[PolicySource, PolicyCheck("weights")]
TrainedPolicy = Annotated[PolicySource, PolicyCheck("training")]
