from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import merge_adapter


@pytest.fixture
def checkpoint(tiny_policy_path: Path, tmp_path: Path) -> Path:
    pytest.importorskip("bitsandbytes")
    policy = load_policy(tiny_policy_path, adapter=AdapterConfig(r=4, dropout=0.0), quantization="nf4")
    for name, parameter in policy.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    save_policy(policy, load_tokenizer(tiny_policy_path), tmp_path / "qlora")
    return tmp_path / "qlora"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    row = [{"role": "user", "content": "what is a goat ?"}, {"role": "assistant", "content": "a goat is safe"}]
    long = [row[0], {"role": "assistant", "content": "goat " * 400}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": r}) + "\n" for r in (row, row, long)))
    return tmp_path / "chats.jsonl"


def run(*arguments: object) -> None:
    merge_adapter.main(parse_config(merge_adapter.MergeConfig, [str(a) for a in arguments]))


def test_it_merges_measures_and_says_which_is_closest(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--checkpoint", checkpoint, "--data", data, "--output", tmp_path / "out")
    report = json.loads((tmp_path / "out/merge.json").read_text())
    assert len(report["layers"]) == 14 and report["heldout"]["rows"] == 2
    printed = capsys.readouterr()
    assert f"the {report['heldout']['closest']} merge is closest to what was trained" in printed.out
    assert "skipped 1 of 3 rows" in printed.err
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out/checkpoint")
    assert plain.dtype == torch.bfloat16
    ids = torch.tensor([[1, 5, 9, 33]])
    with torch.no_grad():
        want = load_policy(checkpoint)(input_ids=ids).logits
        got = load_policy(tmp_path / "out/checkpoint")(input_ids=ids).logits
    torch.testing.assert_close(got, want, atol=0.02, rtol=0)


def test_simple_and_adapter_alone(checkpoint: Path, tiny_policy_path: Path, tmp_path: Path) -> None:
    run("--checkpoint", checkpoint, "--merge", "adapter", "--output", tmp_path / "alone")
    run("--checkpoint", checkpoint, "--merge", "simple", "--dtype", "float32", "--output", tmp_path / "simple")
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    by_peft = PeftModel.from_pretrained(base, tmp_path / "alone/checkpoint/adapter").merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "simple/checkpoint")
    for one, other in zip(merged.parameters(), by_peft.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert "heldout" not in json.loads((tmp_path / "simple/merge.json").read_text())


def test_what_it_cannot_merge_is_one_sentence(tiny_policy_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint: .* has whole weights and no adapter"):
        run("--checkpoint", tiny_policy_path, "--output", tmp_path / "out")
    with pytest.raises(InputError, match="max_rows: must be at least 1"):
        run("--checkpoint", tiny_policy_path, "--output", tmp_path / "out", "--max_rows", 0)
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs in one process"):
        run("--checkpoint", tiny_policy_path, "--output", tmp_path / "out")
