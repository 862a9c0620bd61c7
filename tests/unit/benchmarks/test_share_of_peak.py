"""What the benchmarks count: a model's arithmetic by hand, and a pair's tokens."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from transformers import LlamaConfig

from rlhf.models.pretraining import train_tokenizer
from rlhf.rewards.training.pairs import Pair

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # query; key and value, of one head of 4; output; the three of the MLP


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def benchmark(name: str) -> ModuleType:
    """One whose name a recipe has too."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tied", [True, False])
def test_operations_per_token_by_hand(tmp_path: Path, tied: bool) -> None:
    from peak import Arithmetic

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50}
    config = LlamaConfig(hidden_size=8, intermediate_size=16, tie_word_embeddings=tied, **sizes)
    config.save_pretrained(tmp_path)
    found = Arithmetic.of(tmp_path)
    assert found == Arithmetic(backbone=2 * LAYER, head=8 * 50)
    forward = 2 * (10 * 2 * LAYER + 3 * 8 * 50)
    assert found.forward(10, 3) == forward
    assert (found.training(10, 3, lora=True), found.training(10, 3)) == (2 * forward, 3 * forward)


def test_operations_of_an_iteration_of_ppo_by_hand() -> None:
    """Five passes forward, and two forward and backward; logits in four of the seven, those of the update trained."""
    from peak import Arithmetic

    operations = benchmark("ppo").operations
    model = Arithmetic(backbone=5, head=7)
    assert operations(model, 100, 10, lora=False) == 2 * 100 * 5 * (5 + 2 * 3) + 2 * 10 * 7 * (3 + 3)
    assert operations(model, 100, 10, lora=True) == 2 * 100 * 5 * (5 + 2 * 2) + 2 * 10 * 7 * (3 + 2)


@pytest.mark.parametrize(
    ("chosen", "rejected", "distinct"), [([1, 2, 3, 4], [1, 2, 5], 5), ([1, 2], [1, 2, 3], 3), ([1], [2], 2)]
)
def test_what_a_pair_begins_with_alike_counts_once(chosen: list[int], rejected: list[int], distinct: int) -> None:
    from reward_training import distinct_tokens

    pair: Pair = SimpleNamespace(chosen=chosen, rejected=rejected)  # type: ignore[assignment]
    assert distinct_tokens(pair) == distinct


def test_a_peer_pads_with_a_token_that_no_row_has() -> None:
    from peak import unused_token

    tokenizer = train_tokenizer(["some words to learn"], 300)
    special = tokenizer.all_special_ids
    assert tokenizer.convert_tokens_to_ids(unused_token(tokenizer, [special[:1]])) == special[1]
    assert tokenizer.convert_tokens_to_ids(unused_token(tokenizer, [special, [0, 1]])) not in {*special, 0, 1}


def test_how_far_both_sides_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import reward_scoring
    import reward_training
    import torch

    curves, ours = [[1.0, 2.0], [1.0, 5.0]], torch.tensor([0.0, 4.0, 8.0])
    assert reward_training.apart(curves) == 3.0, "float32: the most at a step"
    assert reward_scoring.apart(ours, ours + torch.tensor([0.0, 0.0, 3.0])) == 3.0
    for module in (reward_training, reward_scoring):
        monkeypatch.setattr(module, "GPU", True)
    assert reward_training.apart(curves) == 1.5
    assert reward_scoring.apart(ours, ours + 1.0) == 0.25, "in standard deviations, which is 4"
