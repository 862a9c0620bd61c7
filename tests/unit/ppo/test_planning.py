"""What the planner counts, against counting by hand. Measured peaks beside it: benchmarks/ppo_memory.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from rlhf.errors import InputError
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.planning.fake import Live
from rlhf.ppo.planning.hardware import Hardware
from rlhf.ppo.planning.models import FakeModels, Setting
from rlhf.ppo.planning.plan import make_plan
from rlhf.ppo.planning.report import _changes
from rlhf.sampling.source import EngineConfig

CPU = Hardware(mixed_precision="no", prompt_tokens=16)


def _setting(policy: Path, **changes: object) -> Setting:
    return Setting(**{"policy": policy, "judges": {}, "ppo": PPOConfig(batch_size=8), "max_new_tokens": 16, **changes})


def test_live_storage_is_counted_while_it_lives() -> None:
    """x (100 floats) and y (50): 600 bytes; a view is free; y goes, z (25) comes: the peak stays."""
    live = Live()
    with FakeTensorMode(), live:
        x = torch.empty(100)
        y = torch.empty(50)
        view = x[10:]
        assert (live.now, live.peak) == (600, 600)
        del y
        assert live.now == 400
        z = torch.empty(25)
        assert (live.now, live.peak) == (500, 600)
        del view, z


def test_a_linear_layers_backward_is_counted() -> None:
    """8 x 4 inputs, 4 -> 2: y 64 bytes, the loss 4; y is not saved, and the gradient of 32 stays."""
    with FakeTensorMode():
        layer, x, live = nn.Linear(4, 2, bias=False), torch.empty(8, 4), Live()
        live.leave_out(layer)
        with live:
            layer(x).sum().backward()
    assert live.peak == 64 + 4
    assert layer.weight.grad is not None and live.now == 32


def test_what_separate_roles_hold(tiny_policy_path: Path) -> None:
    """Float32: 4 bytes a weight, 8 of Adam's moments a trained one; the value has a head more and no second head."""
    count = sum(p.numel() for p in load_policy(tiny_policy_path).parameters())
    held = make_plan(_setting(tiny_policy_path), CPU).held
    assert held["policy"] == {"weights": 4 * count, "optimizer": 8 * count}
    assert held["reference"] == {"weights": 4 * count}
    assert held["value"] == {"weights": 4 * (count + 32), "optimizer": 8 * (count + 32)}
    assert make_plan(_setting(tiny_policy_path, dtype="bfloat16"), CPU).held == held, "dtype is the shared base's"
    half = make_plan(_setting(tiny_policy_path), Hardware(devices=4, zero_stage=3, prompt_tokens=16)).held
    assert half["policy"] == {"weights": 2 * count / 4, "optimizer": 12 * count / 4}


def test_a_reward_model_that_is_not_trained_yet_is_like_the_policy(tiny_policy_path: Path, tmp_path: Path) -> None:
    """A value of its own size is counted as it is: here one layer less."""
    AutoConfig.from_pretrained(tiny_policy_path, num_hidden_layers=1).save_pretrained(tmp_path)
    policy = load_policy(tiny_policy_path)
    count = sum(p.numel() for p in policy.parameters()) + 32
    layer = sum(p.numel() for p in policy.model.layers[0].parameters())
    held = make_plan(_setting(tiny_policy_path, judges={"safety": None}, value=tmp_path), CPU).held
    assert held["safety"] == {"weights": 4 * count}
    on_gpu = make_plan(_setting(tiny_policy_path, judges={"safety": None}), Hardware(prompt_tokens=16)).held
    assert on_gpu["safety"] == {"weights": 2 * count}
    smaller = count - layer * (len(policy.model.layers) - 1)
    assert held["value"] == {"weights": 4 * smaller, "optimizer": 8 * smaller}


def test_what_shared_roles_hold(tiny_policy_path: Path) -> None:
    """One base, and r (in + out) weights for each linear layer and adapter."""
    model = load_policy(tiny_policy_path)
    layers = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n]
    adapter = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    held = make_plan(_setting(tiny_policy_path, shared=True, adapter=AdapterConfig(r=4)), CPU).held
    assert held["base"] == {"weights": 4 * sum(p.numel() for p in model.parameters())}
    assert held["policy"] == held["value"] == {"weights": 4 * adapter, "optimizer": 8 * adapter}
    packed = make_plan(_setting(tiny_policy_path, shared=True, quantization="nf4"), CPU).held
    whole = sum(p.numel() for p in model.parameters()) - sum(layer.weight.numel() for layer in layers)
    linear = sum(layer.weight.numel() for layer in layers)
    assert packed["base"]["weights"] == pytest.approx(4 * whole + 0.516 * linear, rel=0.01)


def test_judges_of_their_own_weights_are_divided_as_all_else(tiny_policy_path: Path, tmp_path: Path) -> None:
    """Beside shared roles, and the referee beside any."""
    AutoConfig.from_pretrained(tiny_policy_path, hidden_size=64).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    size = 2 * (sum(p.numel() for p in model.parameters()) + 64)  # bf16, and a head
    own: dict[str, Any] = {"judges": {"helpfulness": None, "safety": tmp_path}, "referee": {"referee": tmp_path}}
    two, three = (Hardware(devices=4, zero_stage=zero_stage, prompt_tokens=16) for zero_stage in (2, 3))
    for roles in ({"shared": True, "adapter": AdapterConfig(r=1)}, {"shared": False}):
        setting = _setting(tiny_policy_path, **roles, **own)
        whole, divided = make_plan(setting, two), make_plan(setting, three)
        assert whole.held["safety"] == whole.held["referee"] == {"weights": size}
        assert divided.held["safety"] == divided.held["referee"] == {"weights": size / 4}
        more = divided.phases["scoring"] - whole.phases["scoring"]
        assert more == size, "the layers of the largest are gathered as they are run"
    without = make_plan(replace(setting, referee={}), three)
    assert without.seconds == divided.seconds, "it scores held-out answers alone"


def test_options_that_save_memory_do(tiny_policy_path: Path) -> None:
    plain = _setting(tiny_policy_path)
    optimizer = replace(plain.ppo.optimizer, gradient_checkpointing=True)
    saving = _setting(tiny_policy_path, ppo=replace(plain.ppo, optimizer=optimizer))
    group = _setting(tiny_policy_path, ppo=replace(plain.ppo, estimator="rloo", samples_per_prompt=2))
    peaks = [make_plan(setting, CPU) for setting in (plain, saving, group)]
    assert peaks[1].phases["update"] < peaks[0].phases["update"]
    assert "value" not in peaks[2].held and peaks[2].phases["update"] < peaks[0].phases["update"]
    assert peaks[0].tokens == {"written": 8 * 16, "read": 8 * 32}
    assert all(seconds > 0 for name, seconds in peaks[0].seconds.items() if name != "scoring")


def test_hardware_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="memory_gib: must be above 0"):
        Hardware(memory_gib=0.0)
    with pytest.raises(InputError, match="offload: is for zero_stage 3, got 2"):
        Hardware(zero_stage=2, offload=True)


def test_4_bit_is_never_proposed_under_zero_3(tmp_path: Path) -> None:
    setting = Setting(tmp_path, (), PPOConfig(), max_new_tokens=8, shared=True)
    proposed = list(_changes(setting, Hardware(devices=2, zero_stage=3, offload=True)))
    option, changed, hardware = proposed[-1]
    assert option == "--quantization nf4, plain data parallel"
    assert (changed.quantization, hardware.zero_stage, hardware.offload) == ("nf4", 0, False)


def test_answers_are_written_beside_copies_of_the_weights_under_autocast(tiny_policy_path: Path) -> None:
    """8 rows of 16 + 128 tokens, 2 layers x 1 key-value head x 16 numbers x 2 of 2 bytes; 32 bytes a word."""
    policy = load_policy(tiny_policy_path)
    linear = sum(m.weight.numel() for m in policy.modules() if isinstance(m, nn.Linear))
    cached = 8 * (16 + 128) * 2 * 16 * 2 * 2
    plan = make_plan(_setting(tiny_policy_path, max_new_tokens=128), Hardware(prompt_tokens=16))
    assert plan.phases["rollout"] == 2 * linear + cached + 32 * 8 * policy.config.vocab_size


def test_an_engine_holds_weights_and_a_cache_beside_the_training(tiny_policy_path: Path) -> None:
    """8 rows of 16 + 16 tokens and a block of 128; a token's keys and values take 256 bytes."""
    count = sum(p.numel() for p in load_policy(tiny_policy_path).parameters())
    cache = 8 * (16 + 16 + 128) * 256

    def planned(**options: object) -> tuple[dict[str, float], dict[str, float], float]:
        plan = make_plan(_setting(tiny_policy_path, shared=True, engine=EngineConfig(options=options)), CPU)
        return plan.held["engine"], plan.held["engine's cache"], plan.phases["rollout"]

    assert planned() == ({"weights": 4 * count}, {"weights": cache}, 0.0)
    assert planned(tensor_parallel_size=2) == ({"weights": 2 * count}, {"weights": cache / 2}, 0.0)
    assert planned(kv_cache_memory_bytes=10**6)[1] == {"weights": 1e6}
    changes = [name for name, _, _ in _changes(_setting(tiny_policy_path, engine=EngineConfig()), CPU)]
    assert changes[-2:] == ["without --policy.engine", "--quantization nf4"], "in 4 bit there is none"


def test_prompts_are_run_in_passes_and_their_caches_stay(tiny_policy_path: Path) -> None:
    """2,048 tokens a pass on a CPU, 8 prompts of 256; each token's keys and values take 256 bytes."""

    def rollout(prompts: int) -> float:
        setting = _setting(tiny_policy_path, ppo=PPOConfig(batch_size=prompts), max_new_tokens=1)
        return make_plan(setting, replace(CPU, prompt_tokens=256)).phases["rollout"]

    assert rollout(64) - rollout(8) == 56 * 256 * 256


def test_zero_3_gathers_the_layers_that_it_runs(tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many weights at once, of policy and value that are run together, or of the reward model."""
    count = sum(p.numel() for p in load_policy(tiny_policy_path).parameters())
    setting, one = _setting(tiny_policy_path, judges={"safety": None}), Hardware(devices=2, zero_stage=2)
    alone = make_plan(setting, one).phases
    trained, judge = 2 * (count + count + 32), 2 * (count + 32)
    for live, most in ((10**9, (trained, judge)), (count, (2 * count, 2 * count))):
        monkeypatch.setattr("rlhf.ppo.planning.models.LIVE", live)
        divided = make_plan(setting, replace(one, zero_stage=3)).phases
        more = {name: divided[name] - alone[name] for name in divided}
        assert more == {"rollout": count, "scoring": most[1], "experience": most[0], "update": most[0]}
        assert "start" not in divided, "tensor by tensor"


def test_processes_that_share_an_engine_hold_a_part_of_its_weights_each(tiny_policy_path: Path) -> None:
    """Of four processes two have one engine: it writes the four answers of both, of eight, two of them side by side."""
    count = sum(p.numel() for p in load_policy(tiny_policy_path).parameters())
    cache = 256 * (16 + 16 + 128)

    def planned(rows: int, **options: object) -> tuple[float, float]:
        ppo = PPOConfig(batch_size=8, rows=rows)
        setting = _setting(tiny_policy_path, shared=True, ppo=ppo, engine=EngineConfig(options=options))
        held = make_plan(setting, replace(CPU, devices=4)).held
        return held["engine"]["weights"], held["engine's cache"]["weights"]

    assert planned(8) == (4 * count, 2 * cache)
    assert planned(8, tensor_parallel_size=2) == (2 * count, 4 * cache / 2)
    assert planned(1, tensor_parallel_size=2) == (2 * count, 2 * cache / 2)
    assert planned(8, tensor_parallel_size=2, data_parallel_size=2) == (2 * count, 8 * cache / 2)


def test_what_a_gpu_of_eight_holds_of_70b_in_bf16_beside_an_engine_over_all(tmp_path: Path) -> None:
    """recipes/configs/llama2_70b/ppo_engine.yaml; counted from the shapes of Llama 2 70B, not from the models."""
    file = Path(__file__).parents[3] / "recipes/configs/llama2_70b/ppo_engine.yaml"
    config = yaml.safe_load(file.read_text())
    hidden, inner, keys, layers, vocabulary, rank = 8192, 28672, 1024, 80, 32_000, 64
    shape = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    shape.save_pretrained(tmp_path)
    (tmp_path / "adapter").mkdir()
    adapter = {"r": rank, "lora_alpha": 16, "base_model_name_or_path": str(tmp_path)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    ppo = PPOConfig(batch_size=config["ppo"]["batch_size"], rows=config["ppo"]["rows"])
    setting = Setting(
        policy=tmp_path,
        judges={"helpfulness": None, "safety": None},
        ppo=ppo,
        max_new_tokens=config["sampling"]["max_new_tokens"],
        shared=True,
        dtype="bfloat16",
        engine=EngineConfig(**config["policy"]["engine"]),
    )
    with torch.device("meta"):
        held = FakeModels(setting, Hardware(devices=8, zero_stage=3, prompt_tokens=512)).held()
    matrices = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    weights = layers * (matrices + 2 * hidden) + hidden + 2 * vocabulary * hidden
    lora = layers * rank * (2 * 2 * hidden + 2 * (hidden + keys) + 3 * (hidden + inner))
    trained = {"weights": 2 * lora / 8, "optimizer": 12 * lora / 8}
    token = layers * 2 * keys * 2
    assert held == {
        "base": {"weights": 2 * weights / 8},
        "policy": trained,
        "value": trained,
        "reference": {"weights": 2 * lora / 8},
        "helpfulness": {"weights": 2 * lora / 8},
        "safety": {"weights": 2 * lora / 8},
        "engine": {"weights": 2 * weights / 8},
        "engine's cache": {"weights": 8 * 16 * (512 + 512 + 128) * token / 8},
    }
    assert sum(sum(parts.values()) for parts in held.values()) / 2**30 == pytest.approx(41.0, abs=0.1)
