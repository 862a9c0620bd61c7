"""An adapter's files that are damaged, of another base, or do not fit its own settings: one sentence at each door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.errors import InputError
from rlhf.models.config import AdapterConfig
from rlhf.models.merging import merged_policy
from rlhf.models.policy import load_over, load_policy, load_tokenizer, save_policy


@pytest.fixture
def saved(tiny_policy_path: Path, tmp_path: Path) -> Path:
    model = load_policy(tiny_policy_path, adapter=AdapterConfig(r=2))
    save_policy(model, load_tokenizer(tiny_policy_path), tmp_path / "lora", merge=False)
    return tmp_path / "lora"


def settings(folder: Path, **changes: Any) -> None:
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": "eight"}, "is damaged .TypeError"),
        ({"r": 4}, "is damaged .RuntimeError: .*size mismatch"),
        ({"r": 0}, "is damaged .ValueError"),
        ({"peft_type": "MAGIC"}, "is damaged .KeyError: 'MAGIC'"),
        ({"target_modules": "(("}, "is damaged"),
        ({"target_modules": ["q_proj"]}, r"the layers that its adapter_config\.json names, at .*lora_A"),
    ],
)
def test_settings_that_do_not_fit(saved: Path, tiny_policy_path: Path, changes: dict[str, Any], said: str) -> None:
    """The last were loaded with most of the adapter left out, in silence."""
    settings(saved, **changes)
    for load in (
        lambda: load_policy(saved),
        lambda: load_over(tiny_policy_path, saved),
        lambda: merged_policy(saved, "simple", "float32"),
    ):
        with pytest.raises(
            InputError, match=rf"checkpoint: the adapter in .*lora.adapter does not fit .*{said}"
        ) as error:
            load()
        assert "\n" not in str(error.value)


def test_a_layer_that_its_file_lacks_is_not_drawn_at_random(saved: Path) -> None:
    file = saved / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_A" in name)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    with pytest.raises(InputError, match=r"names, at .*layers\.1\.mlp\.up_proj\.lora_A"):
        load_policy(saved)


def test_one_that_is_whole_is_the_same_again(saved: Path) -> None:
    tensors = load_file(saved / "adapter" / "adapter_model.safetensors")
    loaded = load_policy(saved).state_dict()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name.replace(".weight", ".default.weight")], tensor)
