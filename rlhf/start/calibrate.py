"""How fast this machine is with the model of a run, and what its data are: measured once, kept in the run's folder.

    python -m rlhf.start.calibrate JSON         # what `rlhf new` and `rlhf run` do, where nothing that fits is kept

The run's `data` step is done into a folder that goes again, so that rows and their lengths are those that the run will
have. Then a load, a few steps of writing, scoring and training at two sizes each, and a few of the run's prompts are
answered, in one process with one thread, as stages run. It takes a minute or two; of a model so large that
the first size takes long, the second is left out. Where there is no GPU it is processor time that is measured: other
programs on the machine lengthen it too, though less than the clock's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import yaml

from rlhf.conversation import LLAMA2_CHAT_TEMPLATE, give_kwargs
from rlhf.data.loading import load_preferences, load_prompts
from rlhf.errors import InputError, mistakes_in_a_sentence
from rlhf.iteration.config import IterativeConfig, VersionConfig
from rlhf.iteration.hours.counts import CHARACTERS_PER_TOKEN, LOOKED_AT, read_rows
from rlhf.iteration.launching import Launch, Launches
from rlhf.iteration.plan import make_plan
from rlhf.iteration.processes.stage_process import command_of, extra_environment
from rlhf.jsonl import read_json
from rlhf.launch import visible_gpus
from rlhf.models.checkpoint.folder import base_folder, is_adapter_checkpoint, require_policy
from rlhf.paths import model_place
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage import package_versions, peak_memory_mb, write_json
from rlhf.start.measuring import measure

FILE = "calibration.json"
LIMIT = 150.0
"""Seconds after which the whole is given up: loading torch on a busy machine takes some."""
ANSWERED = 16
"""Prompts that are answered, to learn how long the answers are."""


def kept(config: IterativeConfig) -> dict[str, Any] | None:
    """The calibration in the run's folder, if it is of this model, this machine and these packages; else None."""
    try:
        found: dict[str, Any] = read_json(config.run / FILE)
        return found if found["of"] == what_it_is_of(config) else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def calibrated(config: IterativeConfig) -> dict[str, Any] | None:
    """`kept`, else measured now in a process of its own; None where the run is given no chat model, or it fails."""
    if given_model(config) is None:
        return None
    found = kept(config)
    if found is not None:
        return found
    print("calibration: measuring this machine with the model, a minute or two", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            before = sum(os.times()[:4])  # processor time, this process's and that of those it waited for
            files = prepared(config, Path(folder) / "data")
            given = {
                "run": str(config.run),
                "configs": str(config.configs),
                "inputs": config.inputs,
                "versions": [version.name for version in config.versions],
                "launch": config.launch,
                "slots": config.slots,
                "files": files,
                "data_seconds": sum(os.times()[:4]) - before if files else None,
            }
            precision = _precision(config)
            asked = {} if precision is None else {"ACCELERATE_MIXED_PRECISION": precision}
            why = _run([sys.executable, "-m", "rlhf.start.calibrate", json.dumps(given)], asked)
        except InputError as error:
            why = str(error)
    found = kept(config)
    if found is None:
        print(f"calibration: left out, {why}; times are known when stages are finished", file=sys.stderr)
    return found


def given_model(config: IterativeConfig) -> Path | None:
    """The chat model that a run is given, or the base of which it makes one; None: neither, or several."""
    named = config.inputs.get("policy", config.inputs.get("base"))
    return model_place(named) if isinstance(named, str) else None


def prepared(config: IterativeConfig, folder: Path) -> dict[str, str]:
    """Do the run's `data` step into a folder: artifact -> file, of the first version; none where it has no such step.

    Raises:
        InputError: the step fails; with its own sentence.
    """
    stage = next((stage for stage in make_plan(config) if stage.recipe == "prepare_data"), None)
    if stage is None:
        return {}
    stage = replace(stage, overrides={**stage.overrides, "output": str(folder)}, launch=Launch())
    if why := _run(command_of(stage)):
        raise InputError(why)
    names = {name: folder / place.replace("{version}", config.versions[0].name) for name, place in stage.makes.items()}
    return {name: str(file) for name, file in names.items() if file.is_file()}


def _run(command: Sequence[str], variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """What a process with these variables in its environment says last where it fails; else nothing."""
    environment = os.environ | extra_environment() | {"HF_HUB_OFFLINE": "1", **variables}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT:g} s"
    said = done.stderr.strip().splitlines()[-1:]
    return " ".join(said).removeprefix("error: ") or f"exit code {done.returncode}" if done.returncode else ""


def what_it_is_of(config: IterativeConfig) -> dict[str, Any]:
    """What a calibration depends on; InputError where the model is no checkpoint, or `launch` says nonsense."""
    given = given_model(config)
    if given is None:
        raise InputError("inputs: no model is given")
    model = base_folder(require_policy(given))
    sizes = {file.name: file.stat().st_size for file in sorted(model.glob("*.safetensors"))}
    settings = _sampling_settings(config)
    adapter, quantization = settings.get("adapter"), settings.get("quantization")
    named = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()[:16]
    precision = _precision(config)
    return {
        "model": {"config": named, "files": sizes} | ({"quantization": quantization} if quantization else {}),
        "adapter": None if adapter is None else adapter.get("r", 64),
        "machine": {"cores": os.cpu_count(), "cpu": _cpu(), "gpus": [*visible_gpus(), *_kinds_of_gpu()]},
        "packages": package_versions(),
        **({"mixed_precision": precision} if precision is not None else {}),
    }


def _precision(config: IterativeConfig) -> str | None:
    """The mixed precision of what is measured, that of rejection sampling; None: the plan leaves it to the machine."""
    return (
        Launches(config.launch, config.slots).of(step="rejection_sampling", recipe="rejection_sampling").mixed_precision
    )


def _sampling_settings(config: IterativeConfig) -> Mapping[str, Any]:
    """The run's rejection_sampling.yaml, whose adapter and answers are measured; nothing where there is none."""
    try:
        settings = yaml.safe_load((config.configs / "rejection_sampling.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return {name: value for name, value in (settings or {}).items() if value is not None}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _kinds_of_gpu(driver: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """As NVIDIA's driver names those of this machine, without loading torch."""
    lines = [line for file in driver.glob("*/information") for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted({line.partition(":")[2].strip() for line in lines if line.startswith("Model")})


def main(argv: Sequence[str]) -> None:
    """Measure and write the file."""
    given = json.loads(argv[0])
    versions = tuple(VersionConfig(name) for name in given["versions"])
    asked = {name: given[name] for name in ("inputs", "launch", "slots")}
    config = IterativeConfig(Path(given["run"]), Path(given["configs"]), versions=versions, **asked)
    files = {name: Path(file) for name, file in given["files"].items()}
    settings = _sampling_settings(config)
    give_kwargs(settings.get("chat_template_kwargs", {}))
    prompts = [row.messages for row in load_prompts(files["prompts"])[:ANSWERED]] if "prompts" in files else []
    params = SamplingParams(**settings.get("sampling", {}))
    of = what_it_is_of(config)
    with _that_chats(cast(Path, given_model(config))) as model:
        held = settings.get("adapter"), settings.get("quantization")
        speed, memory, answered = measure(str(model), *held, prompts, params)
        per_token = characters_per_token(model, files)
    found = {
        "of": of,
        "rows": {name: asdict(read_rows(file)) for name, file in files.items() if file.suffix == ".jsonl"},
        "characters_per_token": per_token,
        "speed": asdict(speed),
        "training_memory_mb": None if memory is None else asdict(memory),
        "answer_share": answered,
        "data_seconds": given["data_seconds"],
    }
    write_json(config.run / FILE, found | {"peak_memory_mb": round(peak_memory_mb(), 1)})


@contextlib.contextmanager
def _that_chats(model: Path) -> Iterator[Path]:
    """The model's folder; of a base without a chat template one with its files and Llama 2's."""
    from rlhf.models.policy import load_tokenizer

    tokenizer = load_tokenizer(model)
    if tokenizer.chat_template or is_adapter_checkpoint(model):
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in [*model.glob("*.safetensors*"), model / "config.json"]:
            (Path(folder) / file.name).symlink_to(file.resolve())
        tokenizer.chat_template = LLAMA2_CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
        yield Path(folder)


def characters_per_token(model: Path, files: Mapping[str, Path]) -> float:
    """Of the run's rows, rendered by the model's template, whose own tokens count too."""
    from rlhf.conversation import Renderer
    from rlhf.models.policy import load_tokenizer

    renderer = Renderer(load_tokenizer(model))
    if "preferences" in files:
        dialogues = [row.conversation("chosen") for row in load_preferences(files["preferences"])[:LOOKED_AT]]
        rendered = [renderer.dialogue(dialogue).input_ids for dialogue in dialogues]
    elif "prompts" in files:
        dialogues = [row.messages for row in load_prompts(files["prompts"])[:LOOKED_AT]]
        rendered = [renderer.prompt_ids(dialogue) for dialogue in dialogues]
    else:
        return CHARACTERS_PER_TOKEN
    tokens = sum(map(len, rendered))
    characters = sum(len(message["content"]) for dialogue in dialogues for message in dialogue)
    return characters / tokens if tokens else CHARACTERS_PER_TOKEN


if __name__ == "__main__":
    with mistakes_in_a_sentence():
        main(sys.argv[1:])
