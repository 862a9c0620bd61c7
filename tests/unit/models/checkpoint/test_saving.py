"""What is saved is read back; what is refused at saving and loading: NaN, foreign code, a config that does not fit."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM

from rlhf.errors import InputError
from rlhf.models.adapters import merged_weights
from rlhf.models.averaging import average_checkpoints
from rlhf.models.checkpoint.folder import ADAPTER_PREFIX, require_checkpoint, require_trainable, weight_types
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.checkpoint.saving import as_written, probe_logits
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.loading import load_reward
from rlhf.training.accelerator import make_accelerator

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def bf16_policy(tiny_policy_path: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(tiny_policy_path, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer(tiny_policy_path).save_pretrained(folder)
    return folder


def nudged(model: torch.nn.Module) -> Any:
    """As a step of training leaves it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def test_what_is_saved_names_no_code_of_the_checkpoint_it_came_from(bf16_policy: Path, tmp_path: Path) -> None:
    config = json.loads((bf16_policy / "config.json").read_text())
    (bf16_policy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "code.Model"}}))
    save_policy(load_policy(bf16_policy), load_tokenizer(bf16_policy), tmp_path / "c")
    assert "auto_map" not in json.loads((tmp_path / "c" / "config.json").read_text())


@pytest.mark.parametrize("adapter", [None, AdapterConfig(r=4, dropout=0.0)])
def test_a_policy_keeps_the_type_that_it_came_in(
    bf16_policy: Path, tmp_path: Path, adapter: AdapterConfig | None
) -> None:
    """Training holds float32; what is written is as large as what was read, and its config says the same type."""
    model = nudged(load_policy(bf16_policy, adapter=adapter))
    assert next(model.parameters()).dtype == torch.float32
    save_policy(model, load_tokenizer(bf16_policy), tmp_path / "c")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (bf16_policy, tmp_path / "c")]
    assert abs(sizes[1] - sizes[0]) < 1000
    assert set(weight_types(tmp_path / "c").values()) == {"BF16"}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    assert plain.dtype == torch.bfloat16
    whole = model.merge_and_unload() if adapter else model
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name].to(torch.bfloat16)), name


def test_a_reward_model_keeps_its_backbone_s_type_and_float32_heads(bf16_policy: Path, tmp_path: Path) -> None:
    model = nudged(RewardModel.from_policy(bf16_policy, safety_head=True, seed=0))
    model.save(tmp_path / "c", load_tokenizer(bf16_policy))
    types = weight_types(tmp_path / "c")
    assert types.pop("score.weight") == "F32" and set(types.values()) == {"BF16"}
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "c").dtype == torch.bfloat16
    again = RewardModel.load(tmp_path / "c")
    again.save(tmp_path / "d", load_tokenizer(bf16_policy))
    assert weight_types(tmp_path / "d") == types | {"score.weight": "F32"}


def with_nan(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    tensors[name].view(-1)[3] = float("nan")
    return tensors


def test_weights_that_are_not_finite_are_not_saved(tiny_policy_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy_path)
    whole, adapter = load_policy(tiny_policy_path), load_policy(tiny_policy_path, adapter=AdapterConfig(r=2))
    reward = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0)
    with torch.no_grad():
        whole.model.norm.weight[0] = float("inf")
        next(p for n, p in adapter.named_parameters() if "lora_B" in n).fill_(float("nan"))
        reward.safety_head.weight.fill_(float("nan"))
    sentence = r"checkpoint: the .* has values in .* that are not finite; nothing was saved; lower the learning rate"
    for save in (
        lambda: save_policy(whole, tokenizer, tmp_path / "a"),
        lambda: save_policy(adapter, tokenizer, tmp_path / "b"),
        lambda: save_policy(adapter, tokenizer, tmp_path / "c", merge=False),
        lambda: reward.save(tmp_path / "d", tokenizer),
    ):
        with pytest.raises(InputError, match=sentence):
            save()
    assert not list(tmp_path.glob("[abc]/**/*.safetensors")) and not list(tmp_path.glob("d/safety*"))


def test_weights_that_are_not_finite_are_not_loaded(tiny_policy_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy_path)
    save_policy(load_policy(tiny_policy_path), tokenizer, tmp_path / "p")
    RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0).save(tmp_path / "r", tokenizer)
    size = AdapterConfig(r=2, dropout=0.0, merge=False)
    save_policy(load_policy(tiny_policy_path, adapter=size), tokenizer, tmp_path / "a", merge=False)
    for file, name in (
        ("p/model.safetensors", "model.norm.weight"),
        ("r/safety_head.safetensors", "weight"),
        ("a/adapter/adapter_model.safetensors", "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"),
    ):
        save_file(with_nan(load_file(tmp_path / file), name), tmp_path / file, metadata={"format": "pt"})
    for load in (
        lambda: load_policy(tmp_path / "p"),
        lambda: load_policy(tmp_path / "p", quantization="nf4"),
        lambda: RewardModel.from_policy(tmp_path / "p", safety_head=False, seed=0),
        lambda: RewardModel.load(tmp_path / "r"),
        lambda: load_policy(tmp_path / "a"),
    ):
        with pytest.raises(InputError, match=r"checkpoint: .* has values in .* that are not finite; "):
            load()


def test_a_tokenizer_s_setting_of_another_type_is_refused_at_the_door(tiny_policy_path: Path, tmp_path: Path) -> None:
    file = shutil.copytree(tiny_policy_path, tmp_path / "c") / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": "long"}))
    with pytest.raises(InputError, match=r"checkpoint: the tokenizer of .*c fails \(TypeError: .*\); mend its"):
        load_tokenizer(tmp_path / "c")


def test_ids_that_the_model_does_not_embed_are_refused_when_it_loads(tiny_policy_path: Path, tmp_path: Path) -> None:
    """A policy grows rows for new tokens, not for ids that lie far beyond; a reward model grows none."""
    tokenizer = load_tokenizer(tiny_policy_path)
    RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0).save(tmp_path / "r", tokenizer)
    settings = json.loads((tmp_path / "r" / "tokenizer_config.json").read_text())
    (tmp_path / "r" / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<unheard-of>"}))
    with pytest.raises(InputError, match=r"the tokenizer of .*r has the token '<unheard-of>' with id 300, and the"):
        load_reward(tmp_path / "r")
    shutil.copytree(tiny_policy_path, tmp_path / "c")
    content = json.loads((tmp_path / "c" / "tokenizer.json").read_text())
    content["model"]["vocab"] = {token: n + 1000 * (n > 9) for token, n in content["model"]["vocab"].items()}
    (tmp_path / "c" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"with id 1010, and the model embeds 300; bring the tokenizer"):
        load_policy(tmp_path / "c")


@pytest.mark.parametrize(("dtype", "called"), [(torch.int64, "I64"), (torch.complex64, "C64")])
def test_a_weight_in_no_real_numbers_is_refused_at_the_door(
    tiny_policy_path: Path, tmp_path: Path, dtype: torch.dtype, called: str
) -> None:
    file = shutil.copytree(tiny_policy_path, tmp_path / "c") / "model.safetensors"
    state = load_file(file)
    save_file(state | {"model.norm.weight": state["model.norm.weight"].to(dtype)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"checkpoint: .*c holds model\.norm\.weight as {called}, which no weight"):
        load_policy(tmp_path / "c")


@pytest.mark.parametrize("part", [7, None, "../policy/model.safetensors", "/etc/passwd", ".."])
def test_an_index_names_files_beside_it(tiny_policy_path: Path, tmp_path: Path, part: object) -> None:
    folder = Path(shutil.copytree(tiny_policy_path, tmp_path / "c"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": part}}))
    with pytest.raises(InputError, match=r"index\.json has no weight_map of tensors' names to files beside it"):
        require_checkpoint(folder)


def test_a_config_that_does_not_fit_the_weights_is_refused(tiny_policy_path: Path, tmp_path: Path) -> None:
    for name, value in (("num_hidden_layers", 1), ("num_hidden_layers", 3), ("intermediate_size", 32)):
        folder = tmp_path / f"{name}{value}"
        shutil.copytree(tiny_policy_path, folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(InputError, match=r"no place for the weights model\.layers\.1|lacks the weights|be loaded"):
            load_policy(folder)
        with pytest.raises(InputError, match=r"no place for the weights|lacks the weights|be loaded"):
            RewardModel.from_policy(folder, safety_head=False, seed=0)


def test_a_checkpoint_s_own_code_never_runs(
    tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it asked for: a "y" waits on standard input all the while."""
    folder, ran = tmp_path / "own", tmp_path / "ran"
    shutil.copytree(tiny_policy_path, folder)
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).write_text('')\nclass A: ...\n")
    own = {"AutoConfig": "code.A", "AutoModelForCausalLM": "code.A", "AutoTokenizer": ["code.A", None]}
    for name, change in (("config.json", {"model_type": "own"}), ("tokenizer_config.json", {"tokenizer_class": "A"})):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | change | {"auto_map": own}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    sentence = r"checkpoint: .*own needs code of its own \(code\.A\), which is never run here; name a checkpoint of an "
    for load in (
        lambda: load_policy(folder),
        lambda: load_tokenizer(folder),
        lambda: RewardModel.from_policy(folder, safety_head=False, seed=0),
        lambda: from_pretrained(AutoModelForSequenceClassification, folder),
    ):
        with pytest.raises(InputError, match=sentence):
            load()
    assert not ran.exists() and sys.stdin.read() == "y\n" * 20


def test_nothing_is_loaded_but_through_the_one_door() -> None:
    """`from_pretrained` of transformers is called in one place; peft's reads settings and tensors, and runs nothing."""
    for file in sorted(path for top in ("rlhf", "recipes", "benchmarks") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                kind = ast.unparse(node.func.value)
                if node.func.attr == "from_pretrained" and kind not in ("LoraConfig", "PeftModel"):
                    assert any(ast.unparse(k) == "trust_remote_code=False" for k in node.keywords), (file, node.lineno)
                    assert file == ROOT / "rlhf/models/checkpoint/pretrained.py" or file.is_relative_to(
                        ROOT / "benchmarks/peers"
                    ), file


def save_wrongly(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """transformers' save_pretrained with a fault."""
    right = LlamaForCausalLM.save_pretrained

    def wrong(self: Any, folder: Path, state_dict: dict[str, torch.Tensor], **options: Any) -> None:
        if how == "lost":
            state_dict = {n: t for n, t in state_dict.items() if "layers.1" not in n}
        if how == "renamed":
            state_dict = {n.replace("layers.1.mlp", "layers.1.mlp.base_layer"): t for n, t in state_dict.items()}
        if how == "changed":
            state_dict = state_dict | {"model.norm.weight": state_dict["model.norm.weight"] + 1e-6}
        right(self, folder, state_dict=state_dict, **options)
        if how == "config":
            settings = json.loads((folder / "config.json").read_text())
            settings["rms_norm_eps"] = 1.0
            (folder / "config.json").write_text(json.dumps(settings))

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", wrong)


@pytest.mark.parametrize(
    ("how", "at"),
    [
        ("lost", "model.layers.1."),
        ("renamed", "model.layers.1.mlp."),
        ("changed", "model.norm.weight"),
        ("config", "its outputs"),
    ],
)
@pytest.mark.parametrize("adapter", [None, AdapterConfig(r=2, dropout=0.0)])
def test_what_is_read_back_otherwise_is_refused(
    tiny_policy_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    at: str,
    adapter: AdapterConfig | None,
) -> None:
    model = load_policy(tiny_policy_path, adapter=adapter)
    save_wrongly(monkeypatch, how)
    with pytest.raises(InputError, match=f"was read back and is not the model that was trained, at {at}"):
        save_policy(model, load_tokenizer(tiny_policy_path), tmp_path / "c")


def test_an_average_is_read_back_too(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        nudged(RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0)).save(
            tmp_path / name, load_tokenizer(tiny_policy_path)
        )
    right = huggingface_hub.save_torch_state_dict
    changed = {"score.weight": torch.zeros(1, 32)}
    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", lambda state, f: right(state | changed, f))
    with pytest.raises(InputError, match=r"at score\.weight"):
        average_checkpoints([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_a_checkpoint_s_broken_json_is_named_at_the_door(tiny_policy_path: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_policy_path, tmp_path / "c")
    if "index" in name:
        (tmp_path / "c" / "model.safetensors").rename(tmp_path / "c" / "model-00001-of-00001.safetensors")
    for broken in ("{not", "[1]", "[" * 5000):
        (tmp_path / "c" / name).write_text(broken)
        with pytest.raises(InputError, match=rf"checkpoint: .*{re.escape(name)} holds no JSON object"):
            require_trainable(tmp_path / "c")


@pytest.mark.parametrize("ends", ["stop", -1, True, [1, "stop"]])
def test_an_end_token_that_is_none_is_named_at_the_door(tiny_policy_path: Path, tmp_path: Path, ends: object) -> None:
    """transformers passes over a generation_config.json that it cannot read, and the model would never stop there."""
    shutil.copytree(tiny_policy_path, tmp_path / "c")
    (tmp_path / "c" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(InputError, match=r"generation_config\.json has the eos_token_id"):
        require_checkpoint(tmp_path / "c")


def test_a_model_that_accelerate_prepared_for_bfloat16_is_compared_in_its_own_precision(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    """Its forward pass has accelerate's autocast in it, and float32 weights are allowed a difference of 1e-3."""
    accelerator = make_accelerator()
    accelerator.native_amp = True  # as on a GPU with mixed precision
    model, tokens = accelerator.prepare(load_policy(tiny_policy_path)), torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        before = model(tokens).logits
        save_policy(model, load_tokenizer(tiny_policy_path), tmp_path / "c", accelerator)
        assert torch.equal(model(tokens).logits, before), "it goes on in bfloat16"
        exact = AutoModelForCausalLM.from_pretrained(tmp_path / "c")(tokens).logits
    assert not torch.allclose(before, exact, atol=1e-4, rtol=0), "or this shows nothing"


def test_the_comparison_is_no_business_of_tf32(tiny_policy_path: Path) -> None:
    model, seen = load_policy(tiny_policy_path), []
    model.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("high")
    try:
        probe_logits(model)
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_gpu_needs_no_room_for_what_is_written(bf16_policy: Path) -> None:
    model: Any = load_policy(bf16_policy, adapter=AdapterConfig(r=2, dropout=0.0))
    base, shapes = model.get_base_model(), {name: tensor.shape for name, tensor in model.state_dict().items()}
    with FakeTensorMode():
        state = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
        merged = merged_weights(base, state, ADAPTER_PREFIX)
        written = as_written(base, merged)
    adapted = [tensor for name, tensor in merged.items() if name.endswith("_proj.weight")]
    assert adapted and {tensor.device.type for tensor in [*adapted, *written.values()]} == {"cpu"}
