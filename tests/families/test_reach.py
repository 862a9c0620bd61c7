"""What an adapter, 4 bit and training reach of a model that is not all linear layers, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from zoo import make

from rlhf.errors import InputError
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy
from rlhf.models.reward_model import RewardModel

ADAPTER = AdapterConfig(r=2, alpha=8, dropout=0.0)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5"])
def test_what_sees_is_neither_adapted_nor_trained(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = make(name, tiny_tokenizer, tmp_path / "base")
    for adapter in (None, ADAPTER):
        model = load_policy(base, adapter=adapter)
        trained = [n for n, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained and not [n for n in trained if "vision_tower" in n or "visual" in n or "projector" in n]


@pytest.mark.parametrize(("name", "adapted"), [("mamba", {"in_proj"}), ("mamba2", {"in_proj"})])
def test_layers_whose_weights_a_kernel_reads_itself_get_no_adapter(
    name: str, adapted: set[str], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """It would change nothing there: the kernel never calls the layer."""
    model = load_policy(make(name, tiny_tokenizer, tmp_path / "base"), adapter=ADAPTER)
    assert {n.split(".")[-4] for n, parameter in model.named_parameters() if parameter.requires_grad} == adapted


def test_dropout_on_fused_experts_is_refused_before_training(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = make("mixtral", tiny_tokenizer, tmp_path / "base")
    sentence = r"adapter\.dropout: this model's experts are fused into one tensor, .* set adapter\.dropout to 0"
    with pytest.raises(InputError, match=sentence):
        load_policy(base, adapter=AdapterConfig(r=2))
    with pytest.raises(InputError, match=sentence):
        RewardModel.from_policy(base, safety_head=False, seed=0, adapter=AdapterConfig(r=2))


@pytest.mark.parametrize("name", ["mixtral", "falcon"])
def test_4_bit_that_reaches_the_lesser_part_is_refused(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    base = make(name, tiny_tokenizer, tmp_path / "base")
    for load in (
        lambda: load_policy(base, adapter=ADAPTER, quantization="nf4"),
        lambda: RewardModel.from_policy(base, safety_head=False, seed=0, adapter=ADAPTER, quantization="nf4"),
    ):
        with pytest.raises(
            InputError, match=r"quantization: nf4 reaches [\d,]+ of [\d,]+ weights, \d+% .* leave quant"
        ):
            load()


def test_what_4_bit_and_an_adapter_reach_is_said(tiny_policy_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes")
    load_policy(tiny_policy_path, adapter=ADAPTER, quantization="nf4")
    said = capsys.readouterr().err
    # per layer: q and o 32 x 32, k and v 16 x 32, three of 64 x 32 in the feed-forward
    weights = f"{2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32):,}"
    assert f"quantization: nf4 reaches {weights} of {weights} weights, 100%" in said
    assert f"adapter: a LoRA adapter reaches {weights} of {weights} weights, 100%" in said
