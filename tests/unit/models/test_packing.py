"""Packed rows give the loss and every gradient of separate rows; what cannot be packed falls back and agrees too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from host_looks import HostLooks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Preference
from rlhf.models.batching import batches_by_prompt, pad_rows
from rlhf.models.packing import attention_of_rows, has_plain_attention, pack_rows
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel, without_dropout
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.pairs import render_pairs
from rlhf.rewards.training.train import pair_task

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "num_labels": 1}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "qwen2": Qwen2Config(**SIZES, **HEADS),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256, num_labels=1, pad_token_id=2),
}
SLIDING = MistralConfig(**SIZES, **HEADS, sliding_window=8)

PROMPT = list(range(30, 60))
PAIRS = {
    "as people write them": ([1, *PROMPT, 5, 6, 7, 4], [1, *PROMPT, 8, 9, 4]),
    "nothing in common but the begin token": ([1, 5, 6, 7], [1, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
    "nothing in common": ([5, 6, 7], [8, 9, 10, 11]),
    "equal up to the last token": ([1, *PROMPT, 5, 6], [1, *PROMPT, 5, 7]),
    "one the beginning of the other": ([1, *PROMPT], [1, *PROMPT, 5, 7, 9, 11]),
    "the same": ([1, 20, 21, 22], [1, 20, 21, 22]),
    "ends with the pad token": ([1, 40, 41, 2], [1, 40, 41, 42, 43, 2, 2]),
}


def reward_model(config: Any) -> RewardModel:
    """Wide random weights, so that attention matters; both heads."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(without_dropout(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.15)
    return RewardModel(model, nn.Linear(32, 1))


def rows_of(pairs: list[tuple[list[int], list[int]]], pad_id: int = 2) -> dict[str, Any]:
    ids, mask = pad_rows([*(chosen for chosen, _ in pairs), *(rejected for _, rejected in pairs)], pad_id)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "packed": pack_rows(ids, mask, torch.arange(len(pairs)).repeat(2)),
    }


def loss_and_gradients(model: RewardModel, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(**batch)
    chosen, rejected = output.score.chunk(2)
    loss = nn.functional.softplus(rejected - chosen).sum() + 0.1 * nn.functional.softplus(output.safety_logit).sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_by_one(model: RewardModel, pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Each pair in its own batch, its two rows apart and without padding where they are equally long."""
    total, sums = torch.zeros(()), {}
    for pair in pairs:
        batch = rows_of([pair])
        del batch["packed"]
        loss, gradients = loss_and_gradients(model, batch)
        total += loss
        sums = {name: sums.get(name, 0) + gradient for name, gradient in gradients.items()}
    return total, sums


def assert_same(got: tuple[Tensor, dict[str, Tensor]], want: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(got[0], want[0], atol=1e-5, rtol=1e-5)
    assert got[1].keys() == want[1].keys()
    assert sum(gradient.abs().sum() for gradient in want[1].values()) > 1
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradients_are_those_of_separate_rows(family: str) -> None:
    model = reward_model(CONFIGS[family])
    assert model.shares_prefixes
    for pair in PAIRS.values():
        assert_same(loss_and_gradients(model, rows_of([pair])), one_by_one(model, [pair]))
    together = list(PAIRS.values())
    assert_same(loss_and_gradients(model, rows_of(together)), one_by_one(model, together))
    assert_same(loss_and_gradients(model, rows_of(together, pad_id=77)), one_by_one(model, together))


def test_each_shared_token_is_computed_once_and_padding_never() -> None:
    seen = []
    model = reward_model(CONFIGS["llama"])
    for layer in model.model.base_model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[:2]))
    model(**rows_of([PAIRS["as people write them"], PAIRS["nothing in common"]]))
    assert seen == [(1, 31 + 4 + 3 + 3 + 4), (1, 4)], "the last layer is asked for the rows' last tokens alone"


def test_a_packed_row_by_hand() -> None:
    ids, mask = pad_rows([[7, 8, 9], [5], [7, 8, 4, 3], [7, 8, 6]], pad_id=0)
    groups = torch.tensor([4, 9, 4, 4])
    packed = pack_rows(ids, mask, groups)
    assert packed.input_ids.tolist() == [[7, 8, 9, 5, 4, 3, 6]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 2, 3, 2]]
    assert packed.read.tolist() == packed.alone.tolist() == [2, 3, 5, 6]
    asked = torch.cat([block.queries.flatten() for block in packed.blocks])
    assert asked[packed.order].tolist() == list(range(7))
    second = pack_rows(ids, mask, groups, read=(torch.arange(4) == 1) & (mask != 0))
    assert second.read.tolist() == [1, 1, 1] and second.alone.tolist() == [1], "row 1 has no second token"


def test_packed_rows_move_whole() -> None:
    """To another device, by whose name the CPU is meant too."""
    ids, mask = pad_rows([[7, 8, 9], [5], [7, 8, 4, 3], [7, 8, 6]], pad_id=0)
    for groups in (torch.tensor([4, 9, 4, 4]), None):
        packed = pack_rows(ids, mask, groups)
        moved = packed.to("cpu:0")
        assert packed.to("cpu") is packed is not moved
        assert repr(moved) == repr(packed) and moved.order.data_ptr() != packed.order.data_ptr()
        assert (moved.lengths is None) == (groups is not None)


def test_the_host_waits_for_no_number_of_a_packed_batch() -> None:
    """Of a training step on a GPU: all that it must know was known when the batch was made, on the CPU."""
    model, batch = reward_model(CONFIGS["llama"]), rows_of(list(PAIRS.values()))
    with HostLooks() as looks:
        loss_and_gradients(model, batch)
        model.token_scores(**batch)
    assert looks.found == []
    with HostLooks() as looks:
        rows_of(list(PAIRS.values()))
    assert {"nonzero", "_unique2", "_local_scalar_dense", "index"} <= set(looks.found)


def test_many_rows_in_any_order_and_groups_of_any_number() -> None:
    model = reward_model(CONFIGS["llama"]).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in (3, 40, 17)]
    rows, groups = [], []
    for number in torch.randint(0, 4, (30,), generator=generator).tolist():
        head = prompts[number] if number < 3 else []
        size = int(torch.randint(1, 50, (1,), generator=generator))
        rows.append(head + torch.randint(3, 300, (size,), generator=generator).tolist())
        groups.append(number if number < 3 else 100 + len(rows))
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([row]), torch.ones(1, len(row))).score for row in rows])
        ids, mask = pad_rows(rows, 2)
        together = model(ids, mask, pack_rows(ids, mask, torch.tensor(groups))).score
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_pairs_that_training_cuts_give_the_same_loss_and_safety_loss(tiny_policy_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy_path)
    history: Conversation = [
        {"role": "user", "content": "hello " * 8},
        {"role": "assistant", "content": "sure " * 8},
        {"role": "user", "content": "how do I paint my own goat ?"},
    ]
    rows = [
        Preference("0", history, "ask a doctor", "sure " * 12, chosen_safe=True, rejected_safe=False),
        Preference("1", history[2:], "mora", "ask a doctor instead", rejected_safe=False),
    ]
    pairs = render_pairs(rows, Renderer(tokenizer), max_length=75)
    assert len(pairs[0].preference.messages) == 1, "the oldest turn was to be cut"
    task = pair_task(RewardTrainingConfig(), tokenizer.pad_token_id)
    model = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0)
    found = []
    for shares in (True, False):
        model.zero_grad()
        model.shares_prefixes = shares
        loss, figures = task.loss(model, task.collate(pairs))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append((loss.detach(), gradients | figures))
    assert found[0][1]["safety_loss"] > 0
    assert_same(*found)


def test_lora_on_the_backbone_trains_the_same() -> None:
    peft = pytest.importorskip("peft")
    model = reward_model(CONFIGS["llama"])
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(lora, model.model)
    pairs = list(PAIRS.values())
    got, want = loss_and_gradients(model, rows_of(pairs)), one_by_one(model, pairs)
    assert any("lora_A" in name for name in got[1]) and not any("base_layer" in name for name in got[1])
    assert_same(got, want)


def test_gradient_checkpointing_keeps_sharing() -> None:
    model, pairs = reward_model(CONFIGS["qwen2"]), list(PAIRS.values())
    want = one_by_one(model, pairs)
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    assert model.shares_prefixes
    assert_same(loss_and_gradients(model, rows_of(pairs)), want)


def test_a_sliding_window_falls_back_and_agrees() -> None:
    model, pairs = reward_model(SLIDING), list(PAIRS.values())
    assert not model.shares_prefixes
    assert_same(loss_and_gradients(model, rows_of(pairs)), one_by_one(model, pairs))
    assert reward_model(MistralConfig(**SIZES, **HEADS, sliding_window=None)).shares_prefixes


def test_bert_falls_back_and_agrees() -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES, num_attention_heads=4, num_labels=1)).eval()
    reward, batch = RewardModel(model), rows_of(list(PAIRS.values()))
    assert not reward.shares_prefixes
    plain = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    torch.testing.assert_close(reward(**batch).score, plain)


@pytest.mark.parametrize(
    "config",
    [
        SLIDING,
        Gemma2Config(**SIZES, **HEADS, head_dim=8),
        LlamaConfig(**SIZES, **HEADS, attn_implementation="eager"),
        LlamaConfig(**SIZES, **HEADS, is_causal=False),
    ],
    ids=["sliding window", "soft cap", "eager", "not causal"],
)
def test_other_attention_is_not_plain(config: Any) -> None:
    assert not has_plain_attention(AutoModelForSequenceClassification.from_config(config))


def test_a_recurrent_model_is_not_plain() -> None:
    from transformers import MambaForCausalLM

    model: PreTrainedModel = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1))
    assert not has_plain_attention(model)


def test_a_saved_config_does_not_name_our_attention(tmp_path: Path) -> None:
    model = reward_model(CONFIGS["llama"])
    model.model.save_pretrained(tmp_path)
    assert "rlhf" not in (tmp_path / "config.json").read_text()
    assert RewardModel(model.model).shares_prefixes, "a model wrapped again goes on sharing"


def test_batches_keep_prompts_together_and_count_them_once() -> None:
    a, b = tuple(range(10)), tuple(range(100, 130))
    prompts = [a, b, a, b, a]
    lengths = [15, 40, 12, 33, 11]
    assert batches_by_prompt(lengths, prompts, 1000) == [[1, 3, 0, 2, 4]]
    assert batches_by_prompt(lengths, prompts, 50) == [[1, 3], [0, 2, 4]], "a prompt that fits a batch is not parted"
    assert batches_by_prompt(lengths, prompts, 17) == [[1], [3], [0, 2], [4]]
    assert batches_by_prompt([], [], 5) == []


class Called(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True], ids=["held", "autocast"])
@pytest.mark.parametrize(("length", "seen"), [(9, 9), (5, 12)], ids=["causal", "masked"])
def test_on_a_cpu_bfloat16_is_multiplied_by_no_kernel_of_sdpa(length: int, seen: int, autocast: bool) -> None:
    """As exact as the type, of two heads a key, some rows with padding; in float32 it is sdpa itself."""
    torch.manual_seed(1)
    shapes = ((3, 4, length, 8), (3, 2, seen, 8), (3, 2, seen, 8))
    tensors = [torch.randn(shape).bfloat16().double().requires_grad_() for shape in shapes]
    last = torch.arange(length) + torch.tensor([seen - length, 0, seen - length])[:, None]
    mask = None if length == seen else (torch.arange(seen) <= last[:, :, None])[:, None]
    module = nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]

    def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
        scores = query @ key.transpose(2, 3) * 0.3
        shown = torch.ones(length, seen).tril() > 0 if mask is None else mask
        return (scores.masked_fill(~shown, -torch.inf).softmax(-1) @ value).transpose(1, 2)

    wanted = exact(*tensors)
    pull = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, tensors, pull)
    ours = [t.detach().to(torch.float32 if autocast else torch.bfloat16).requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Called() as called:
        found = attention_of_rows(module, *ours, mask, scaling=0.3)
        got = torch.autograd.grad(found, ours, pull.to(found.dtype))
    assert not any("scaled_dot_product" in name for name in called.names) and found.dtype == torch.bfloat16
    for one, other in zip((found, *got), (wanted, *gradients), strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < 0.03
    with Called() as called:
        attention_of_rows(module, *(t.detach().float() for t in tensors), mask, scaling=0.3)
    assert any("scaled_dot_product" in name for name in called.names)
