"""Every checkpoint's card: what the hub reads of it, what made it; and `rlhf push`, with a hub that writes down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import save_file

from rlhf.cli import main
from rlhf.data.fields import DataSource
from rlhf.iteration.ledger import made_digest, output_digest
from rlhf.models.checkpoint.fields import TrainedCheckpoint
from rlhf.stage import StageConfig, open_stage
from rlhf.stage.card import CARD_FILE, command_text, read_metadata
from rlhf.stage.digests import FileDigests

Make = Callable[..., Path]


@dataclass(frozen=True, kw_only=True)
class PolishConfig(StageConfig):
    """Polishing.

    Args:
        policy: checkpoint to start from.
        data: rows, here or on the hub.
    """

    policy: TrainedCheckpoint
    data: tuple[DataSource, ...] = ()


@pytest.fixture
def make(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A stage that writes a checkpoint: a copy of its policy's, or an adapter over it."""
    (tmp_path / "rows.jsonl").write_text("{}\n")

    def stage(policy: Path, output: str, *, adapter: str = "", data: tuple[str, ...] = ("acme/rows", "")) -> Path:
        rows = tuple(source or str(tmp_path / "rows.jsonl") for source in data)
        config = PolishConfig(policy=policy, data=rows, output=tmp_path / output)
        command = ["/opt/recipes/polish.py", "--policy", str(policy), "--output", str(config.output), "--seed", "3"]
        monkeypatch.setattr("sys.argv", command)
        opened = open_stage(config)
        with opened.work() as folder:
            left_out = shutil.ignore_patterns(*(["config.json", "*.safetensors"] if adapter else []), CARD_FILE)
            shutil.copytree(tiny_policy_path, folder / "checkpoint", ignore=left_out)
            if adapter:
                (folder / "checkpoint" / "adapter").mkdir()
                settings = {"base_model_name_or_path": str(policy), "r": 2, "target_modules": ["q"]}
                (folder / "checkpoint/adapter/adapter_config.json").write_text(json.dumps(settings))
                (folder / "checkpoint/adapter" / CARD_FILE).write_text(f"---\nbase_model: {policy}\n---\n")
                save_file({adapter: torch.ones(2)}, folder / "checkpoint/adapter/adapter_model.safetensors")
            opened.closing.rows(7, {"too long": 2})
            opened.closing.figures(win_rate=0.61804, best="a | b")
            opened.closing.suspect(["it is odd"])
        return config.output / "checkpoint"

    return stage


@pytest.fixture
def chat(tiny_policy_path: Path, tmp_path: Path) -> Path:
    """A chat model as the hub's own cache holds it, with its makers' card."""
    folder = tmp_path / "hub" / "models--acme--goat" / "snapshots" / "0123"
    shutil.copytree(tiny_policy_path, folder)
    card = {"base_model": "acme/kid", "license": "apache-2.0", "datasets": "acme/chats", "language": ["en"]}
    (folder / CARD_FILE).write_text(f"---\n{yaml.safe_dump(card)}---\n\n# Goat\n")
    return folder


def test_a_card_says_what_made_the_checkpoint_of_what_and_how_good_it_is(
    make: Make, chat: Path, tmp_path: Path
) -> None:
    first = make(chat, "first")
    assert read_metadata(first) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "datasets": ["acme/chats", "acme/rows"],
        "license": "apache-2.0",
        "base_model": ["acme/goat"],
        "tags": ["rlhf", "rlhf-policy", "test-model-cards"],
    }
    text = (first / CARD_FILE).read_text()
    digest = json.loads((tmp_path / "first" / "stage.json").read_text())["inputs"]["policy"]["digest"]
    assert f"| policy | `snapshots/0123` | {digest} |" in text and "| data.1 | `" in text
    assert "polish.py --policy snapshots/0123 --seed 3" in text.replace("/opt/recipes/", "").replace("recipes/", "")
    assert "| win_rate | 0.618 |" in text and "| best | a \\| b |" in text and "- Suspicious: it is odd" in text
    assert "7 rows were used; left out: 2 too long" in text and "torch 2" in text
    assert str(tmp_path) not in text, "no folder of this machine"
    second = make(first, "second", data=())
    assert read_metadata(second)["base_model"] == ["acme/goat"], "the base is where the chain begins"
    assert read_metadata(second)["license"] == "apache-2.0"


def test_a_card_names_the_data_behind_rows_that_a_stage_made(make: Make, chat: Path, tmp_path: Path) -> None:
    """As in a plan, whose step `data` splits the user's files and hub names."""

    @dataclass(frozen=True, kw_only=True)
    class SplitConfig(StageConfig):
        """Splitting.

        Args:
            data: rows.
        """

        data: tuple[DataSource, ...] = ()

    (tmp_path / "mine.jsonl").write_text("{}\n")
    split = open_stage(SplitConfig(output=tmp_path / "data", data=("acme/pairs:train", str(tmp_path / "mine.jsonl"))))
    with split.work() as folder:
        (folder / "train.jsonl").write_text("{}\n")
    checkpoint = make(chat, "reward", data=(str(tmp_path / "data" / "train.jsonl"),))
    assert read_metadata(checkpoint)["datasets"] == ["acme/chats", "acme/pairs"]
    told = f"| data.0 | `data/train.jsonl`, of `{tmp_path.name}/mine.jsonl`, `acme/pairs` |"
    assert told in (checkpoint / CARD_FILE).read_text()
    again = make(checkpoint, "again", data=())
    assert read_metadata(again)["datasets"] == ["acme/chats", "acme/pairs"]


def test_a_card_decides_nothing(make: Make, chat: Path, tmp_path: Path) -> None:
    """The same stage elsewhere writes the same one, and what reads the checkpoint does not run again for it."""
    one, other = make(chat, "a/one"), make(chat, "b/other")
    assert (one / CARD_FILE).read_text() == (other / CARD_FILE).read_text()
    before = FileDigests(tmp_path).of_folder(one.parent)
    (one / CARD_FILE).write_text("our best one so far, by far")
    after = FileDigests(tmp_path).of_folder(one.parent)
    assert before != after and output_digest(before) == output_digest(after)
    assert made_digest(before, "checkpoint") == made_digest(after, "checkpoint")


@pytest.mark.parametrize(
    ("tensor", "task"), [("base.q.lora_A.weight", "text-generation"), ("base.score.weight", "text-classification")]
)
def test_adapters_and_reward_models_have_one_too(tensor: str, task: str, make: Make, tiny_policy_path: Path) -> None:
    checkpoint = make(tiny_policy_path, "adapter", adapter=tensor)
    metadata, text = read_metadata(checkpoint), (checkpoint / CARD_FILE).read_text()
    assert metadata["library_name"] == "peft" and metadata["pipeline_tag"] == task
    assert "base_model" not in metadata, "nobody knows it"
    assert 'subfolder="adapter"' in text and ("SequenceClassification" in text) == ("score" in tensor)


def test_a_reward_model_that_transformers_has_no_class_for_is_loaded_by_ours(make: Make, chat: Path) -> None:
    config = json.loads((chat / "config.json").read_text()) | {"architectures": ["GraniteForCausalLM"]}
    (chat / "config.json").write_text(json.dumps(config))
    text = (make(chat, "adapter", adapter="base.score.weight") / CARD_FILE).read_text()
    assert 'RewardModel.load("THIS")' in text and "SequenceClassification" not in text


class FakeHub:
    """Takes the place of huggingface_hub.HfApi."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}

    def __call__(self) -> FakeHub:
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if name.startswith("others/"):
            raise OSError("403 Forbidden:\nnot yours")
        self.repositories[name] = {"private": private, "exist_ok": exist_ok}
        return f"https://hub/{name}"

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> None:
        assert name in self.repositories and commit_message
        for one in operations:
            content = one.path_or_fileobj
            self.files[one.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    found = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", found)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    return found


def test_push_writes_all_of_a_checkpoint(
    make: Make, chat: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make(chat, "sft")
    main(["push", str(checkpoint), "me/goat", "--private"])
    assert capsys.readouterr().out == "https://hub/me/goat\n"
    assert hub.repositories == {"me/goat": {"private": True, "exist_ok": True}}
    assert hub.files == {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    main(["push", str(checkpoint), "me/goat", "--base", "acme/other"])
    assert b"base_model:\n- acme/other\n" in hub.files[CARD_FILE], "as told, and not as the card here says"
    assert read_metadata(checkpoint)["base_model"] == ["acme/goat"]


def test_a_pushed_adapter_names_its_base_as_the_hub_does(make: Make, tiny_policy_path: Path, hub: FakeHub) -> None:
    checkpoint = make(tiny_policy_path, "rm", adapter="base.score.weight")
    main(["push", str(checkpoint), "me/judge", "--base", "acme/goat"])
    settings = json.loads(hub.files["adapter/adapter_config.json"])
    assert settings == {"base_model_name_or_path": "acme/goat", "r": 2, "target_modules": ["q"]}
    assert "adapter/README.md" not in hub.files and b"- acme/goat" in hub.files[CARD_FILE]
    assert not [name for name, content in hub.files.items() if str(tiny_policy_path).encode() in content]
    assert (
        json.loads((checkpoint / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] != "acme/goat"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{sft}", "goat"], "name: must be org/name, as on the hub, got 'goat'"),
        (["{sft}", "me/goat", "--base", "models/x/y"], "base: must be org/name, as on the hub, got 'models/x/y'"),
        (["nowhere", "me/goat"], "checkpoint: nowhere is not a folder"),
        (["{rows}", "me/goat"], "is not a folder"),
        (["{stage}", "me/goat"], "is the folder of a stage; name "),
        (["{adapter}", "me/goat"], "which nobody else has; name that model as the hub does, with --base org/name"),
        (["{sft}", "others/goat"], "push: others/goat could not be written (403 Forbidden: not yours); may the token"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(
    words: list[str], sentence: str, make: Make, chat: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = make(chat, "sft")
    elsewhere = shutil.copytree(chat, sft.parents[1] / "chat")
    adapter = make(elsewhere, "adapter", adapter="base.q.lora_A.weight")
    given = {"{sft}": sft, "{stage}": sft.parent, "{rows}": sft.parents[1] / "rows.jsonl", "{adapter}": adapter}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["push", *(str(given.get(word, word)) for word in words)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in said and said.count("\n") == 1
    assert not hub.files


def test_without_a_token_nothing_is_sent(
    make: Make, chat: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SystemExit):
        main(["push", str(make(chat, "sft")), "me/goat"])
    assert "push: there is no token of the hub's; `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    assert not hub.repositories


def test_a_card_s_command_names_no_folder_of_the_machine() -> None:
    """Before, those in a list stood there whole."""
    words = ["/opt/x/bin/python", "/home/me/recipes/sft.py", "--rows", '["/home/me/a/b.jsonl", "org/name"]']
    words += [
        "--more",
        "{a: /home/me/c/d.jsonl}",
        "--one=/home/me/e/f",
        "--url",
        "http://host/v1",
        "--output",
        "/home/me/o",
    ]
    said = command_text(words)
    assert "home" not in said and "opt" not in said
    for kept in ("recipes/sft.py", '["a/b.jsonl", "org/name"]', "{a: c/d.jsonl}", "e/f", "http://host/v1"):
        assert kept in said
