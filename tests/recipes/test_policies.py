"""A policy by the user's door: a bare folder, options in YAML with a server, 4 bit, a backend of the user's own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from fake_engine import FakeEngine

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.iteration.plan import find_recipe
from rlhf.rejection.pool import read_completions

if TYPE_CHECKING:
    from chat_server import ChatServer

REWARD = """
import torch
def length(conversations):
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])
"""


@pytest.fixture
def options(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a temperature sweep, all but its policy."""
    (tmp_path / "reward_by_length.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}]} for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    return {
        "output": str(tmp_path / "out"),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "helpfulness": "reward_by_length:length",
        "temperatures": [0.7, 1.0],
        "num_samples": 2,
        "best_of": 2,
        "sampling": {"max_new_tokens": 24},
    }


def sweep(options: dict[str, Any], tmp_path: Path, *words: str) -> tuple[dict[str, Any], list[Any]]:
    """Run it as its command does; what stage.json says of the policy, and the answers."""
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(options), encoding="utf-8")
    sys.path.insert(0, str(find_recipe("temperature_sweep").parent))
    import temperature_sweep

    temperature_sweep.main(parse_config(temperature_sweep.TemperatureSweepConfig, ["--config", str(file), *words]))
    folder = Path(options["output"])
    record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    assert "policy" in record["inputs"], "the checkpoint under the field's own name, in every form"
    return record["config"]["policy"], read_completions(folder / "completions.parquet")


def test_a_bare_folder_on_the_command_line(options: dict[str, Any], tiny_policy_path: Path, tmp_path: Path) -> None:
    held, rows = sweep(options, tmp_path, "--policy", str(tiny_policy_path), "--policy.rows", "3")
    assert (held["checkpoint"], held["rows"], held["quantization"]) == (str(tiny_policy_path), 3, None)
    assert len(rows) == 16 and all(math.isfinite(row.logprob) for row in rows)


def test_a_server_in_yaml(
    options: dict[str, Any], tiny_policy_path: Path, tmp_path: Path, chat_server: ChatServer
) -> None:
    server = {"url": chat_server.url, "model": "tiny", "concurrency": 2}
    held, rows = sweep(options | {"policy": {"server": server}}, tmp_path, "--policy", str(tiny_policy_path))
    assert held["server"]["concurrency"] == 2 and held["checkpoint"] == str(tiny_policy_path)
    assert len(chat_server.asked) == 8 and all(math.isnan(row.logprob) and row.token_ids for row in rows)


def test_an_engine_on_the_command_line(
    options: dict[str, Any], tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine = FakeEngine(tmp_path / "environment")
    words = ["--policy.engine", "vllm", "--policy.engine.environment", str(engine.folder), "--policy.rows", "3"]
    held, rows = sweep(options, tmp_path, "--policy", str(tiny_policy_path), *words)
    assert (held["engine"]["name"], held["checkpoint"]) == ("vllm", str(tiny_policy_path))
    assert len(rows) == 16 and engine.option("max-num-seqs") == "3" and not engine.running()
    assert [row.logprob for row in rows] == pytest.approx([-sum(row.token_ids) / 128 for row in rows])
    engine.tell(fails="ValueError: no room")
    with pytest.raises(
        InputError, match=r"policy\.engine: vllm on .* ended before it answered \(ValueError: no room\)"
    ):
        sweep(options | {"output": str(tmp_path / "other")}, tmp_path, "--policy", str(tiny_policy_path), *words)


def test_an_engine_in_yaml_that_is_not_installed(
    options: dict[str, Any], tiny_policy_path: Path, tmp_path: Path
) -> None:
    policy = {"engine": {"name": "vllm", "environment": "nowhere"}}
    with pytest.raises(InputError, match=r"policy\.engine: there is no vllm in nowhere; make .* by `make vllm`"):
        sweep(options | {"policy": policy}, tmp_path, "--policy", str(tiny_policy_path))


def test_four_bit_in_yaml(options: dict[str, Any], tiny_policy_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    held, rows = sweep(options | {"policy": {"quantization": "nf4"}}, tmp_path, "--policy", str(tiny_policy_path))
    assert held["quantization"] == "nf4"
    whole = options | {"policy": str(tiny_policy_path), "output": str(tmp_path / "whole")}
    others = sweep(whole, tmp_path)[1]
    assert [row.logprob for row in rows] != [row.logprob for row in others], "other weights give other probabilities"


def test_a_backend_of_the_user_s_own(options: dict[str, Any], tiny_policy_path: Path, tmp_path: Path) -> None:
    (tmp_path / "echo_engine.py").write_text(
        "from rlhf.sampling.protocol import Sample\n"
        "class Echo:\n"
        "    def __init__(self, source, opening):\n"
        "        self.word = source.backend_options['word']\n"
        "    def sample(self, prompts, num_samples, params, keys=None):\n"
        "        said = [f'{self.word} {p[-1][\"content\"]}' for p in prompts]\n"
        "        return [[Sample(text, (1, 2), -1.0, True)] * num_samples for text in said]\n",
        encoding="utf-8",
    )
    policy = {"backend": "echo_engine:Echo", "backend_options": {"word": "you asked"}}
    _, rows = sweep(options | {"policy": policy}, tmp_path, "--policy", str(tiny_policy_path))
    assert {row.text for row in rows} == {f"you asked what is {i} ?" for i in range(4)}


def test_a_mistake_is_one_sentence(tiny_policy_path: Path, tmp_path: Path) -> None:
    """As a command, before torch is loaded: exit code 2."""
    command = [sys.executable, str(find_recipe("evaluate_safety")), "--output", str(tmp_path / "out")]
    command += ["--prompts.own", "p.jsonl", "--policy", str(tiny_policy_path), "--policy.backend", "vllm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = "must be in_process, server, engine, or package.module:function of your own, got 'vllm'"
    assert done.stderr == f"error: policy.backend: {said}\n"
