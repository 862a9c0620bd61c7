"""The model card of every checkpoint: README.md with the hub's metadata, and what made it, of what, with which figures.

It says nothing of when and where, so that the same stage writes the same card: names of files are their last two parts,
and the output is left out of the command. A card decides nothing of what reads a checkpoint: edit it as you like.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.stage.record import StageRecord, record_of_rows

CARD_FILE = "README.md"
MARK = "rlhf"
"""The tag by which a card is known for one of ours."""
INHERITED = ("base_model", "datasets", "license", "license_name", "license_link")
HUB_FOLDER = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def write_cards(folder: Path, record: StageRecord, recipe: str, starts: Sequence[Path]) -> None:
    """Write the card of each checkpoint in a stage's folder; there may be none.

    Args:
        record: what stage.json will say.
        recipe: its name.
        starts: the checkpoints that this one came from.
    """
    for tokenizer in sorted(folder.glob("*/tokenizer_config.json")):
        checkpoint = tokenizer.parent
        if (checkpoint / "config.json").is_file() or (checkpoint / "adapter").is_dir():
            text = card(checkpoint, record, recipe, starts)
            (checkpoint / CARD_FILE).write_text(text, encoding="utf-8")


def card(checkpoint: Path, record: StageRecord, recipe: str, starts: Sequence[Path]) -> str:
    """The text; see `write_cards`."""
    adapter, reward = (checkpoint / "adapter").is_dir(), _is_reward_model(checkpoint)
    metadata = card_metadata(adapter, reward, recipe, starts, record["datasets"])
    what = ("Adapter of a " if adapter else "") + ("reward model" if reward else "policy")
    closing, inputs = record["closing"], record["inputs"]
    begun = ", ".join(f"`{short(path)}`" for path in starts)
    lines = [
        f"# {what[0].upper()}{what[1:]}, by {recipe}",
        "",
        f"Made by the recipe `{recipe}` of the library rlhf, which follows the Llama 2 paper's alignment pipeline"
        f"{f', from {begun}' if begun else ''}.",
        "",
        "## To load it",
        "",
        "```python",
        *_loading(adapter, reward, metadata.get("base_model", ["BASE"])[0], not reward or _has_classifier(checkpoint)),
        "```",
        "",
        "## What made it",
        "",
        "```",
        command_text(record["command"]),
        "```",
        "",
        *_table(["read", "what", "digest"], [[n, _words_of(Path(e["path"])), e["digest"]] for n, e in inputs.items()]),
        *([f"{closing['rows_used']} rows were used; {_left_out(closing)}.", ""] if closing["rows_used"] else []),
        "## Figures",
        "",
        *_table(["figure", "value"], [[name, _shown(value)] for name, value in closing["figures"].items()]),
        *([] if closing["figures"] else ["The stage measures none itself.", ""]),
        *(f"- Suspicious: {sentence}" for sentence in closing["suspicious"]),
        *([""] if closing["suspicious"] else []),
        "## Packages",
        "",
        ", ".join(f"{name} {version}" for name, version in record["packages"].items()),
    ]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n" + "\n".join(lines) + "\n"


def card_metadata(
    adapter: bool, reward: bool, recipe: str, starts: Sequence[Path], datasets: Sequence[str]
) -> dict[str, Any]:
    """What the hub reads. Base, datasets and licence come from the cards of the checkpoints that this one came from."""
    found: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if reward else "text-generation",
    }
    for start in starts:
        known = read_metadata(start)
        if MARK not in _listed(known.get("tags")):  # somebody else's: it is the base itself
            known.pop("base_model", None)
            if match := HUB_FOLDER.search(str(start.resolve())):
                known["base_model"] = "/".join(match.groups())
        for name in INHERITED:
            if known.get(name) and name.startswith("license"):
                found.setdefault(name, known[name])
            elif known.get(name):
                found[name] = list(dict.fromkeys([*found.get(name, []), *_listed(known[name])]))
    if datasets:
        found["datasets"] = list(dict.fromkeys([*found.get("datasets", []), *datasets]))
    return found | {"tags": [MARK, "reward-model" if reward else "rlhf-policy", recipe.replace("_", "-")]}


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """The metadata of a checkpoint's card; none where there is no card, or no metadata that can be read."""
    try:
        text = (checkpoint / CARD_FILE).read_text(encoding="utf-8")
        content = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, IndexError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def with_metadata(text: str, metadata: Mapping[str, Any]) -> str:
    """A card's text with other metadata."""
    body = text.split("---\n", 2)[2] if text.startswith("---\n") and text.count("---\n") > 1 else f"\n{text}"
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n{body}"


def command_text(command: Sequence[str]) -> str:
    """A command for people elsewhere: without its output, and without the folders of this machine."""
    words = [word for at, word in enumerate(command) if "--output" not in (word, command[at - 1] if at else "")]
    return shlex.join([Path(words[0]).name, *(_without_folders(word) for word in words[1:])])


def _without_folders(word: str) -> str:
    """A word of a command, of the paths in it, also in a list of them, the last two parts."""
    if word.startswith("/"):
        return short(word)
    return re.sub(r"(?<=[\"'=\[{, ])/[^\"',\]}]+", lambda found: short(found[0]), word)


def short(path: str | Path) -> str:
    """The last two parts of a path, as sft/checkpoint."""
    return "/".join(Path(path).parts[-2:]).lstrip("/")


def recipe_name(config: Any) -> str:
    """The recipe that a config is of."""
    module = type(config).__module__
    return Path(sys.argv[0]).stem if module == "__main__" else module.rpartition(".")[2].removeprefix("rlhf_recipe_")


def _has_classifier(checkpoint: Path) -> bool:
    """Whether transformers has a sequence classifier of this family, by the class that the config names."""
    settings = checkpoint / "adapter" / "adapter_config.json"
    if settings.is_file():
        checkpoint = Path(json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"] or checkpoint)
    file = checkpoint / "config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("architectures") if file.is_file() else None
    import transformers

    return not named or hasattr(transformers, re.sub(r"For\w+$|LMHeadModel$", "ForSequenceClassification", named[0]))


def _words_of(path: Path) -> str:
    """An input, and of rows that a stage made what it made them of."""
    record = record_of_rows(path)
    behind = [] if record is None else [short(e["path"]) for e in record["inputs"].values()]
    behind += [] if record is None else record.get("datasets", [])
    return f"`{short(path)}`" + (f", of {', '.join(f'`{name}`' for name in dict.fromkeys(behind))}" if behind else "")


def _is_reward_model(checkpoint: Path) -> bool:
    """By the class that its config names, or the head among an adapter's tensors."""
    tensors = checkpoint / "adapter" / "adapter_model.safetensors"
    if tensors.is_file():
        from safetensors import safe_open

        with safe_open(tensors, framework="np") as opened:
            return any(".score." in name for name in opened.keys())  # noqa: SIM118
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return any("Classification" in name for name in config.get("architectures") or ())


def _loading(adapter: bool, reward: bool, base: str, has_classifier: bool) -> list[str]:
    if reward and not has_classifier:
        return ["from rlhf.models.reward_model import RewardModel", "", 'model = RewardModel.load("THIS")']
    kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    labels = ", num_labels=1" if reward and adapter else ""
    imports = ["from peft import PeftModel"] if adapter else []
    opened = f'{kind}.from_pretrained("{base if adapter else "THIS"}"{labels})'
    return [
        *imports,
        f"from transformers import {kind}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("THIS")',
        f'model = PeftModel.from_pretrained({opened}, "THIS", subfolder="adapter")' if adapter else f"model = {opened}",
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    cells = [heads, ["---"] * len(heads), *rows]
    return [*("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells), ""]


def _left_out(closing: Mapping[str, Any]) -> str:
    said = ", ".join(f"{count} {why}" for why, count in closing["left_out"].items())
    return f"left out: {said or 'none'}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]
