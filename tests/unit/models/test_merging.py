"""The two merges against sums made by hand from bitsandbytes' own quantisation, and what peft computes unmerged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.evaluation.policies.merges import heldout_figures, merge_report, report_lines
from rlhf.finetuning.config import FinetuningConfig
from rlhf.finetuning.supervised import AnswerLogprobs, answer_task
from rlhf.models.checkpoint.folder import require_policy_adapter
from rlhf.models.config import AdapterConfig
from rlhf.models.merging import layer_distances, merged_policy
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel

bitsandbytes = pytest.importorskip("bitsandbytes")
SIZE = AdapterConfig(r=4, alpha=8, dropout=0.0)
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def dialogue(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


DIALOGUES = [
    dialogue("what is the river of velda ?", "the river of velda is mora ."),
    dialogue("how do I paint my goat", "I cannot help with that because it is not safe"),
    dialogue("hello", "sure"),
]


def adapter_over(path: Path, folder: Path, *, steps: int = 0, quantization: str | None = "nf4") -> Path:
    """An adapter checkpoint over the policy at `path`, trained so many steps on DIALOGUES."""
    torch.manual_seed(0)  # peft draws without a generator
    policy = load_policy(path, adapter=SIZE, quantization=quantization)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(path)
    task, model = answer_task(tokenizer.pad_token_id), AnswerLogprobs(policy)
    batch = task.collate(Renderer(tokenizer).dialogues(DIALOGUES))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        task.loss(model, batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    save_policy(policy, tokenizer, folder, merge=False)
    return folder


def requantised(weight: Tensor) -> Tensor:
    """dq(nf4(W)) of a float32 matrix by bitsandbytes' functions, double quantised."""
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    return bitsandbytes.functional.dequantize_4bit(packed, state)


def is_layer(name: str) -> bool:
    return name.split(".")[-2] in LAYERS


def test_an_untrained_adapter_merges_to_the_base_and_to_the_base_dequantised(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    folder = adapter_over(tiny_policy_path, tmp_path / "a")
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path).state_dict()
    simple, careful = (merged_policy(folder, merge).state_dict() for merge in ("simple", "careful"))
    assert simple.keys() == careful.keys() == base.keys()
    assert sum(map(is_layer, base)) == 14
    for name, weight in base.items():
        assert torch.equal(simple[name], weight.bfloat16()), name
        held = requantised(weight) if is_layer(name) else weight
        assert torch.equal(careful[name], held.bfloat16()), name
        assert not is_layer(name) or not torch.equal(simple[name], careful[name])


def test_weights_that_lie_on_nf4_levels_make_the_merges_equal(tiny_policy_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_policy_path, tmp_path / "p")
    levels = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(tmp_path / "p/model.safetensors")
    for name, weight in tensors.items():
        if is_layer(name):
            drawn = levels[torch.randint(len(levels), (weight.numel(),), generator=generator)]
            drawn[::64] = 1.0  # each block's largest value, the same for all: the block scales lose nothing either
            tensors[name] = 0.125 * drawn.view_as(weight)
    save_file(tensors, tmp_path / "p/model.safetensors", metadata={"format": "pt"})
    folder = adapter_over(tmp_path / "p", tmp_path / "a", steps=3)
    simple, careful = (merged_policy(folder, merge).state_dict() for merge in ("simple", "careful"))
    assert all(torch.equal(simple[name], careful[name]) for name in simple)
    distances = layer_distances(folder)
    assert all(layer.quantization == 0.0 < layer.update for layer in distances)


def test_a_trained_adapter_s_careful_merge_is_the_trained_model(
    tiny_policy_path: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = adapter_over(tiny_policy_path, tmp_path / "a", steps=20)
    report = merge_report(folder, DIALOGUES, FinetuningConfig(), "bfloat16")
    assert report["trained"]["kl"] == 0.0 and report["trained"]["loss"] < report["base"]["loss"] - 0.1
    assert abs(report["careful"]["loss"] - report["trained"]["loss"]) < 1e-3
    assert 0 <= report["careful"]["kl"] < report["simple"]["kl"] < report["base"]["kl"]
    assert report["closest"] == "careful"

    # the loss is that of transformers; what is saved, plain transformers loads
    save_policy(merged_policy(folder, "careful"), load_tokenizer(folder), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    nll, count = 0.0, 0
    for row in Renderer(tiny_tokenizer).dialogues(DIALOGUES):
        ids, mask = torch.tensor([row.input_ids]), torch.tensor([row.loss_mask])
        nll += plain(ids, labels=ids.masked_fill(~mask, -100)).loss.item() * int(mask.sum())
        count += int(mask.sum())
    assert report["careful"]["loss"] == pytest.approx(nll / count, rel=1e-5)
    lines = "\n".join(report_lines({"layers": [vars(d) for d in layer_distances(folder)], "heldout": report}))
    assert "the careful merge is closest to what was trained" in lines and "14 layers" in lines


def test_norms_by_layer_are_those_of_the_matrices(tiny_policy_path: Path, tmp_path: Path) -> None:
    folder = adapter_over(tiny_policy_path, tmp_path / "a", steps=2)
    base = load_file(tiny_policy_path / "model.safetensors")
    adapter = load_file(folder / "adapter/adapter_model.safetensors")
    distances = layer_distances(folder)
    assert len(distances) == 14
    for layer in distances:
        weight = base[f"{layer.name}.weight"]
        a, b = (adapter[f"base_model.model.{layer.name}.lora_{x}.weight"] for x in "AB")
        assert layer.weight == pytest.approx(weight.norm().item(), rel=1e-5)
        assert layer.quantization == pytest.approx((weight - requantised(weight)).norm().item(), rel=1e-5)
        assert layer.update == pytest.approx((2 * b @ a).norm().item(), rel=1e-5)


def test_kl_equals_that_of_torch(tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    one, other = load_policy(tiny_policy_path), load_policy(tiny_policy_path)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    rows = Renderer(tiny_tokenizer).dialogues(DIALOGUES)
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        places = [t - 1 for t, trained in enumerate(row.loss_mask) if trained]
        with torch.no_grad():
            p, q = (model(ids).logits[0, places].log_softmax(-1) for model in (one, other))
        total += torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
        count += len(places)
    for tokens in (1, 8192):
        figures = heldout_figures(other, one, rows, tiny_tokenizer.pad_token_id, tokens)
        assert figures.kl == pytest.approx(total / count, rel=1e-4)


def test_over_whole_weights_there_is_the_simple_merge_alone(tiny_policy_path: Path, tmp_path: Path) -> None:
    folder = adapter_over(tiny_policy_path, tmp_path / "a", steps=5, quantization=None)
    report = merge_report(folder, DIALOGUES, FinetuningConfig(), "float32")
    assert "careful" not in report and report["simple"]["kl"] < 1e-6  # rounding of float32
    assert all(layer.quantization == 0 for layer in layer_distances(folder))
    with pytest.raises(InputError, match=r"trained over whole weights.*--merge simple"):
        merged_policy(folder, "careful")


def test_what_has_nothing_to_merge_is_refused(tiny_policy_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has whole weights and no adapter"):
        require_policy_adapter(tiny_policy_path, "simple")
    reward = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0, adapter=SIZE)
    reward.save(tmp_path / "r", load_tokenizer(tiny_policy_path), merge=False)
    with pytest.raises(InputError, match="adapter of a reward model"):
        require_policy_adapter(tmp_path / "r", "simple")
