"""How fast this machine is with the model of a run: measured once, kept in the run's folder, for `rlhf plan`.

    python -m rlhf.start.calibrate RUN          # what `rlhf new` and `rlhf run` do, where nothing that fits is kept

A load, a few steps of writing, scoring and training at two sizes each, in one process with one thread, as stages run.
It takes at most about a minute; of a model so large that the first size takes long, the second is left out. Where
there is no GPU it is processor time that is measured, which other programs on the machine do not lengthen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from rlhf.conversation import LLAMA2_CHAT_TEMPLATE
from rlhf.data.loading import load_preferences, load_prompts
from rlhf.errors import InputError, mistakes_in_a_sentence
from rlhf.iteration.config import IterativeConfig, VersionConfig
from rlhf.iteration.hours.counts import CHARACTERS_PER_TOKEN, LOOKED_AT, Rows, rows_of, together
from rlhf.iteration.hours.speed import Line, Speed
from rlhf.iteration.processes.stage_process import extra_environment
from rlhf.launch import visible_gpus
from rlhf.models.checkpoint.folder import base_folder, is_adapter_checkpoint, require_policy
from rlhf.paths import in_hub_cache
from rlhf.stage import package_versions, peak_memory_mb, write_json

if TYPE_CHECKING:
    from rlhf.conversation import Conversation

FILE = "calibration.json"
LIMIT = 150.0
"""Seconds after which the whole is given up: loading torch on a busy machine takes some."""
ENOUGH = 20.0
"""Seconds beyond which the second size of a measurement is left out."""
SAMPLES = (4, 16)
STEPS = 12
ROW_TOKENS = 128
ROWS = (1, 3)
MOST_ROWS = 2000
"""Rows of a user's file that are read for lengths and domains."""


def kept(config: IterativeConfig) -> dict[str, Any] | None:
    """The calibration in the run's folder, if it is of this model, this machine and these packages; else None."""
    try:
        found: dict[str, Any] = json.loads((config.run / FILE).read_text(encoding="utf-8"))
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
    print("calibration: measuring this machine with the model, a minute at most", file=sys.stderr, flush=True)
    given = {"run": str(config.run), "configs": str(config.configs), "inputs": config.inputs}
    given["versions"] = [version.name for version in config.versions]
    environment = os.environ | extra_environment() | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "rlhf.start.calibrate", json.dumps(given)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
        why = " ".join(done.stderr.strip().splitlines()[-1:])
    except subprocess.TimeoutExpired:
        why = f"not done after {LIMIT:g} s"
    found = kept(config)
    if found is None:
        print(f"calibration: left out, {why}; times are known when stages are finished", file=sys.stderr)
    return found


def given_model(config: IterativeConfig) -> Path | None:
    """The chat model that a run is given, or the base of which it makes one; None: neither, or several."""
    named = config.inputs.get("policy", config.inputs.get("base"))
    if not isinstance(named, str):
        return None
    return Path(named) if Path(named).exists() else in_hub_cache(named) or Path(named)


def what_it_is_of(config: IterativeConfig) -> dict[str, Any]:
    """What a calibration depends on; InputError where the model is no checkpoint."""
    given = given_model(config)
    if given is None:
        raise InputError("inputs: no model is given")
    model = base_folder(require_policy(given))
    sizes = {file.name: file.stat().st_size for file in sorted(model.glob("*.safetensors"))}
    adapter = adapter_of(config)
    named = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()[:16]
    return {
        "model": {"config": named, "files": sizes},
        "adapter": None if adapter is None else adapter.get("r", 64),
        "machine": {"cores": os.cpu_count(), "cpu": _cpu(), "gpus": list(visible_gpus())},
        "packages": package_versions(),
    }


def adapter_of(config: IterativeConfig) -> Mapping[str, Any] | None:
    """The adapter that the run's rejection sampling trains; None: whole weights."""
    try:
        settings = yaml.safe_load((config.configs / "rejection_sampling.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return None
    found = settings.get("adapter")
    return found if isinstance(found, dict) else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def expected_rows(config: IterativeConfig) -> dict[str, Rows]:
    """Artifact -> the rows that the `data` step is expected to make of the user's files."""
    try:
        settings = yaml.safe_load((config.configs / "prepare_data.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        settings = {}
    inputs, versions = config.inputs, len(config.versions)
    domains = ("helpfulness", "safety", "referee")
    pairs = {name: _read(inputs.get(f"{name}_preferences"), load_preferences) for name in domains}
    trained = together([pairs["helpfulness"], pairs["safety"]])
    given = {name: _read(inputs.get(name), load_prompts) for name in ("prompts", "validation_prompts", "test_prompts")}
    prompts = given["prompts"] if given["prompts"].number else Rows(trained.number, trained.characters / 3)
    shares = {name: settings.get(f"{name}_share", share) for name, share in (("validation", 0.05), ("test", 0.1))}
    split = {name: 0.0 if given[f"{name}_prompts"].number else share for name, share in shares.items()}
    most = {name: settings.get(f"max_{name}_prompts", number) for name, number in (("validation", 64), ("test", 200))}
    own = prompts.number * (1 - sum(split.values())) / (versions if settings.get("rounds") == "share" else 1)

    def part(rows: Rows, number: float, most: float = 0) -> Rows:
        return Rows(min(number, most) if most else number, rows.characters, rows.helpfulness)

    found = {"prompts": part(prompts, own, settings.get("max_prompts", 0))}
    for name in ("validation", "test"):
        theirs = given[f"{name}_prompts"]
        number = theirs.number or split[name] * prompts.number
        found[f"{name}_prompts"] = part(theirs if theirs.number else prompts, number, most[name])
    for name, rows in (("", trained), ("referee_", pairs["referee"])):
        found[f"{name}preferences"] = part(rows, rows.number * (1 - sum(shares.values())))
        found[f"{name}test_preferences"] = part(rows, rows.number * shares["test"])
    return found


def _read(sources: Any, load: Callable[..., Sequence[Any]]) -> Rows:
    """Of the user's files, whatever their layout."""
    parts = []
    for source in [sources] if isinstance(sources, str) else sources or ():
        rows = load(source, on_bad_row="skip")
        parts.append(rows_of([row.to_dict() for row in rows[:MOST_ROWS]], len(rows)))
    return together(parts)


def measure(policy: Path, adapter: Mapping[str, Any] | None) -> Speed:
    """Load, write, score and train with a model, each a little."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load, score, decode = _as_it_is(policy, device)
    return Speed(load, score, _in_training(policy, adapter, device), decode)


def _as_it_is(policy: Path, device: Any) -> tuple[float, Line, Line]:
    """Seconds of a load, of scoring by tokens, of a step of writing by answers."""
    import torch

    from rlhf.sampling.opening import load_weights, open_sampler
    from rlhf.sampling.protocol import SamplingParams
    from rlhf.sampling.source import PolicySource

    source = PolicySource(checkpoint=policy)
    loaded: list[Any] = []
    load = seconds_of(lambda: loaded.append(load_weights(source, device)), device)
    model = loaded[0]
    sampler = open_sampler(source, device, model=model)
    asked: Conversation = [{"role": "user", "content": "Tell me about the river, please. " * 3}]
    params = SamplingParams(max_new_tokens=STEPS)
    ids = _ids(model, device)

    def write(rows: int) -> float:
        (drawn,) = sampler.sample([asked], rows, params)
        return max(1, sum(len(sample.token_ids) for sample in drawn)) / STEPS

    def score(rows: int) -> float:
        with torch.no_grad():
            model.get_decoder()(input_ids=ids[:rows], use_cache=False)
        return rows * ROW_TOKENS

    decode = two_sizes(write, SAMPLES, device)
    return load, two_sizes(score, ROWS, device), Line(decode.fixed / STEPS, decode.each / STEPS)


def _in_training(policy: Path, adapter: Mapping[str, Any] | None, device: Any) -> Line:
    """Seconds of a forward and backward pass by tokens, as the run trains."""
    from rlhf.models.config import AdapterConfig
    from rlhf.models.policy import load_policy
    from rlhf.training.accelerator import frozen_dtype

    dtype = "float32" if adapter is None else frozen_dtype(device)
    model: Any = load_policy(policy, adapter=None if adapter is None else AdapterConfig(**adapter), dtype=dtype)
    model.to(device).train()
    ids = _ids(model, device)

    def train(rows: int) -> float:
        answers = model(input_ids=ids[:rows], use_cache=False, logits_to_keep=ROW_TOKENS // 2).logits
        answers.float().logsumexp(-1).mean().backward()
        model.zero_grad()
        return rows * ROW_TOKENS

    return two_sizes(train, ROWS, device)


def _ids(model: Any, device: Any) -> Any:
    """(most of ROWS, ROW_TOKENS) int64."""
    import torch

    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return torch.arange(max(ROWS) * ROW_TOKENS, device=device).view(max(ROWS), ROW_TOKENS) % vocabulary


def seconds_of(act: Callable[[], object], device: Any) -> float:
    """Processor time of this process, or on a GPU wall time until it is done."""
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    if gpu:
        import torch

        torch.cuda.synchronize()
    begun = clock()
    act()
    if gpu:
        torch.cuda.synchronize()
    return clock() - begun


def two_sizes(act: Callable[[int], float], sizes: tuple[int, int], device: Any) -> Line:
    """Seconds by the things done, which `act` returns: after one go to warm up, one of each size."""
    points = []
    warming = seconds_of(lambda: act(sizes[0]), device)
    for size in sizes if warming < ENOUGH else sizes[:1]:
        done: list[float] = []
        taken = seconds_of(lambda size=size, done=done: done.append(act(size)), device)  # type: ignore[misc]
        points.append((done[0], taken))
        if taken > ENOUGH:
            break
    return Line.through(points)


def main(argv: Sequence[str]) -> None:
    """Measure and write the file."""
    given = json.loads(argv[0])
    versions = tuple(VersionConfig(name) for name in given["versions"])
    config = IterativeConfig(Path(given["run"]), Path(given["configs"]), given["inputs"], versions=versions)
    of = what_it_is_of(config)
    with _that_chats(cast(Path, given_model(config))) as model:
        found = {
            "of": of,
            "rows": {name: asdict(rows) for name, rows in expected_rows(config).items()},
            "characters_per_token": characters_per_token(config, model),
            "speed": asdict(measure(model, adapter_of(config))),
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


def characters_per_token(config: IterativeConfig, model: Path) -> float:
    """Of the user's rows, rendered by the model's template, whose own tokens count too."""
    from rlhf.conversation import Renderer
    from rlhf.models.policy import load_tokenizer

    sources = [config.inputs.get(name) for name in ("helpfulness_preferences", "safety_preferences", "prompts")]
    source = next((one if isinstance(one, str) else one[0] for one in sources if one), None)
    if source is None:
        return CHARACTERS_PER_TOKEN
    renderer = Renderer(load_tokenizer(model))
    if source in (config.inputs.get("prompts") or ()):
        dialogues = [row.messages for row in load_prompts(source, on_bad_row="skip")[:LOOKED_AT]]
        rendered = [renderer.prompt_ids(dialogue) for dialogue in dialogues]
    else:
        dialogues = [row.conversation("chosen") for row in load_preferences(source, on_bad_row="skip")[:LOOKED_AT]]
        rendered = [renderer.dialogue(dialogue).input_ids for dialogue in dialogues]
    tokens = sum(map(len, rendered))
    characters = sum(len(message["content"]) for dialogue in dialogues for message in dialogue)
    return characters / tokens if tokens else CHARACTERS_PER_TOKEN


if __name__ == "__main__":
    with mistakes_in_a_sentence():
        main(sys.argv[1:])
