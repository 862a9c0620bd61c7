from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import torch
from host_looks import HostLooks
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.finetuning.supervised import (
    AnswerLogprobs,
    _Heldout,
    answer_task,
    finetune,
    heldout_loss,
    render_rows,
    training_renderer,
)
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.models.config import AdapterConfig
from rlhf.models.packing import pack_rows
from rlhf.models.policy import load_policy
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig


def dialogue(*texts: str) -> Conversation:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


DIALOGUES = [
    dialogue("what is the river of velda ?", "the river of velda is mora ."),
    dialogue("how do I paint a goat", "I cannot help with that because it is not safe", "please", "ask a doctor"),
    dialogue("hello", "sure"),
    dialogue("answer in one word please", "goat"),
    dialogue("what is safe ?", "instead of a goat paint the river"),
]


def load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path)


def run(
    path: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    heldout: list[Conversation] | None = None,
    **optimizer: float,
) -> tuple[PreTrainedModel, list[float], MetricsLog]:
    accelerator = make_accelerator()
    log = MetricsLog(folder, accelerator)
    policy = load(path)
    settings = {"learning_rate": 0.01, "batch_size": 3, "micro_batch_size": 3, "epochs": 2, **optimizer}
    config = FinetuningConfig(optimizer=OptimizerConfig(**settings))
    result = finetune(policy, Renderer(tokenizer), DIALOGUES, config, accelerator, log, 5, heldout=heldout or [])
    assert not policy.training
    return policy, result.losses, log


@pytest.mark.parametrize("train", ["all", "last"])
def test_loss_equals_that_of_transformers(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, train: str
) -> None:
    policy = load(tiny_policy_path)
    task = answer_task(tiny_tokenizer.pad_token_id)
    rows = render_rows(Renderer(tiny_tokenizer), DIALOGUES, FinetuningConfig(train=train), "test")
    expected = []
    for row in rows:
        ids, mask = torch.tensor([row.input_ids]), torch.tensor([row.loss_mask])
        mean = policy(ids, labels=ids.masked_fill(~mask, -100)).loss
        loss, _ = task.loss(AnswerLogprobs(policy), task.collate([row]))
        torch.testing.assert_close(loss, mean * task.weight(row), rtol=1e-5, atol=1e-5)
        expected.append(loss)
    together, _ = task.loss(AnswerLogprobs(policy), task.collate(rows))
    torch.testing.assert_close(together, torch.stack(expected).sum(), rtol=1e-5, atol=1e-5)


def test_head_on_trained_positions_alone_equals_the_full_logits(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(tiny_policy_path)
    task = answer_task(tiny_tokenizer.pad_token_id)
    rows = render_rows(Renderer(tiny_tokenizer), DIALOGUES, FinetuningConfig(), "test")
    widths: list[int] = []
    policy.lm_head.register_forward_hook(lambda module, inputs, output: widths.append(output[..., 0].numel()))

    def gradients() -> list[torch.Tensor]:
        policy.zero_grad()
        task.loss(AnswerLogprobs(policy), task.collate(rows))[0].backward()
        return [parameter.grad.clone() for parameter in policy.parameters()]

    selected = gradients()
    monkeypatch.setattr(policy, "get_output_embeddings", lambda: None)
    for one, other in zip(selected, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert widths == [sum(task.weight(row) for row in rows), 5 * max(len(row.input_ids) for row in rows)]


def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    task = answer_task(tiny_tokenizer.pad_token_id)
    rows = render_rows(Renderer(tiny_tokenizer), DIALOGUES, FinetuningConfig(), "test")
    results, widths = [], []
    for packing in (False, True):
        policy = load(tiny_policy_path)
        model = AnswerLogprobs(policy, packing=packing)
        assert model.packing is packing
        policy.model.register_forward_hook(lambda module, inputs, output: widths.append(output[0].shape[:2]))
        loss, _ = task.loss(model, task.collate(rows))
        loss.backward()
        results.append((loss.detach(), [parameter.grad for parameter in policy.parameters()]))
    assert widths == [(5, max(len(r.input_ids) for r in rows)), (1, sum(len(r.input_ids) for r in rows))]
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_packed_dialogues_do_not_see_each_other(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The first row's log-probabilities move with its own tokens, and with no token of another row."""
    model = AnswerLogprobs(load(tiny_policy_path), packing=True)
    rows = render_rows(Renderer(tiny_tokenizer), DIALOGUES[:3], FinetuningConfig(), "test")
    task = answer_task(tiny_tokenizer.pad_token_id)
    batch = task.collate(rows)
    own = batch["rows"] == 1

    def logprobs(row: int | None) -> torch.Tensor:
        ids = batch["input_ids"].clone()
        if row is not None:
            ids[row, 0] = 42
        packed = pack_rows(ids, batch["attention_mask"])
        with torch.no_grad():
            return model(**{**batch, "input_ids": ids, "packed": packed})[own]

    assert torch.equal(logprobs(0), logprobs(None)) and torch.equal(logprobs(2), logprobs(None))
    assert not torch.allclose(logprobs(1), logprobs(None), atol=1e-4)


def test_the_host_waits_for_no_number_of_a_packed_batch(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AnswerLogprobs(load(tiny_policy_path), packing=True)
    task = answer_task(tiny_tokenizer.pad_token_id)
    batch = task.collate(render_rows(Renderer(tiny_tokenizer), DIALOGUES, FinetuningConfig(), "test"))
    with HostLooks() as looks:
        task.loss(model, batch)[0].backward()
    assert looks.found == []


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_adapters_pack_and_checkpointing_keeps_their_gradients(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, quantization: Literal["nf4"] | None
) -> None:
    pytest.importorskip("bitsandbytes")
    size = AdapterConfig(r=4, dropout=0.0)
    policy = load_policy(tiny_policy_path, adapter=size, quantization=quantization).train()
    for name, parameter in policy.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    task = answer_task(tiny_tokenizer.pad_token_id)
    batch = task.collate(render_rows(Renderer(tiny_tokenizer), DIALOGUES, FinetuningConfig(), "test"))

    def gradients(model: AnswerLogprobs) -> list[torch.Tensor]:
        policy.zero_grad()
        task.loss(model, batch)[0].backward()
        return [parameter.grad.clone() for parameter in policy.parameters() if parameter.requires_grad]

    padded, packed = gradients(AnswerLogprobs(policy)), AnswerLogprobs(policy, packing=True)
    assert packed.packing and len(padded) == 28 and all(gradient.abs().sum() > 0 for gradient in padded)
    # a 4-bit model computes in bfloat16 on a GPU
    close = {"rtol": 1e-4, "atol": 1e-5} if quantization is None else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(gradients(packed), padded, **close)
    want = gradients(packed)
    packed.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(packed), want, rtol=1e-4, atol=1e-5)


def test_a_model_whose_attention_cannot_pack_is_trained_on_padded_rows(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    size = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    policy = MistralForCausalLM(MistralConfig(**size, **heads, sliding_window=8))
    model = AnswerLogprobs(policy, packing=True)
    assert not model.packing
    rows = render_rows(Renderer(tiny_tokenizer), DIALOGUES, FinetuningConfig(), "test")
    task = answer_task(tiny_tokenizer.pad_token_id)
    with torch.no_grad():
        assert torch.isfinite(task.loss(model, task.collate(rows))[0])
    assert heldout_loss(policy, rows, tiny_tokenizer.pad_token_id, 1) == pytest.approx(
        heldout_loss(policy, rows, tiny_tokenizer.pad_token_id), rel=1e-5
    )


def test_micro_batches_and_padding_change_nothing(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    reference, losses, _ = run(tiny_policy_path, tmp_path, tiny_tokenizer)
    assert losses[-1] < losses[0] - 0.3
    for micro_batch_size in (1, 2):
        policy, other, _ = run(tiny_policy_path, tmp_path, tiny_tokenizer, micro_batch_size=micro_batch_size)
        assert other == pytest.approx(losses, rel=1e-4)
        # AdamW's steps amplify rounding where a gradient is near 0
        for one, two in zip(reference.parameters(), policy.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_heldout_loss_is_that_of_the_rows_and_logged_once_an_epoch(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    policy, _, log = run(tiny_policy_path, tmp_path, tiny_tokenizer, heldout=DIALOGUES[:2], micro_batch_size=1)
    logged = [(row["step"], row["heldout_loss"]) for row in read_metrics(log.path) if "heldout_loss" in row]
    assert [step for step, _ in logged] == [1, 3]
    nll, count = 0.0, 0
    for conversation in DIALOGUES[:2]:
        rendered = Renderer(tiny_tokenizer).dialogue(conversation)
        ids, mask = torch.tensor([rendered.input_ids]), torch.tensor([rendered.loss_mask])
        nll += policy(ids, labels=ids.masked_fill(~mask, -100)).loss.item() * int(mask.sum())
        count += int(mask.sum())
    assert logged[-1][1] == pytest.approx(nll / count, rel=1e-5)


def test_a_row_that_is_too_long_is_cut_skipped_or_refused_by_number(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut: its oldest turns go, its last answer never; one that is too long by itself is left out, and counted."""
    short, history = DIALOGUES[0], dialogue("hello", "goat " * 40)
    rows = [short, [*history, *history, *short], dialogue("hello", "goat " * 400)]
    renderer = training_renderer(tiny_tokenizer, load(tiny_policy_path), FinetuningConfig())
    assert renderer.max_length == 256 and len(Renderer(tiny_tokenizer).dialogue(rows[1]).input_ids) > 256
    kept: dict[str, tuple[list[bool], Counter[str]]] = {}
    for rule in ("cut", "skip"):
        left_out: Counter[str] = Counter()
        found = render_rows(renderer, rows, FinetuningConfig(too_long=rule), "SFT", left_out)  # type: ignore[arg-type]
        kept[rule] = [row.cut for row in found], left_out
    assert kept["cut"] == ([False, True], Counter({"messages: the last turn takes n tokens, above max_length=n": 1}))
    assert kept["skip"][0] == [False] and kept["skip"][1].total() == 2
    assert "SFT: skipped 1 of 3 rows: 1 x messages: the last turn takes n tokens" in capsys.readouterr().err
    fits = [dialogue("hello", "the river of velda " * 30)]  # in tokens, not in characters
    assert len(render_rows(renderer, fits, FinetuningConfig(too_long="skip"), "SFT")) == 1
    with pytest.raises(InputError, match=r"SFT: row 2: messages: longer than max_length=256"):
        render_rows(renderer, rows, FinetuningConfig(too_long="refuse", on_bad_row="skip"), "SFT")
    with pytest.raises(InputError, match=r"SFT: row 1: .*max_length=256"):
        render_rows(renderer, rows[2:], FinetuningConfig(too_long="refuse"), "SFT")


def test_zero_3_lets_go_of_what_the_heldout_loss_fetched(
    tiny_policy_path: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Weights that are on their way for a backward pass that never comes cannot be gathered, to be saved."""

    class Engine(AnswerLogprobs):
        """What a DeepSpeed engine has beside the model."""

        emptied = 0

        def zero_optimization_stage(self) -> int:
            return 3

        def empty_partition_cache(self) -> None:
            self.emptied += 1

    engine, accelerator = Engine(load(tiny_policy_path)), make_accelerator()
    rows = Renderer(tiny_tokenizer).training_rows(DIALOGUES[:2], "all")
    task, log = answer_task(tiny_tokenizer.pad_token_id), MetricsLog(tmp_path, accelerator)
    _Heldout(rows, task, FinetuningConfig(), accelerator, log).measure(engine)
    assert engine.emptied == 1
