from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.text_metrics import ROUGES, bert_scores, distribution, readability, rouge
from rlhf.models.checkpoint.context import Context

ANSWERS = ["the cat sat on the mat", "dogs bark", "", "one line\nand another line"]
REFERENCES = ["the cat lay on the mat", "a dog barks loudly", "something", "and another line\none line"]


def test_rouge_is_the_librarys_own() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(ROUGES, use_stemmer=True)
    ours = rouge(ANSWERS, REFERENCES)
    for i, (answer, reference) in enumerate(zip(ANSWERS, REFERENCES, strict=True)):
        for name in ROUGES:
            assert ours[name][i] == scorer.score(reference, answer)[name].fmeasure
    assert ours["rouge1"][0] == pytest.approx(5 / 6)  # five of six words on both sides
    assert ours["rouge2"][0] == pytest.approx(3 / 5)  # the cat, on the, the mat
    assert ours["rougeL"][3] < ours["rougeLsum"][3] == 1.0  # the same lines in another order
    assert [ours[name][2] for name in ROUGES] == [0.0] * 4


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({w for text in ANSWERS + REFERENCES for w in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    fast.model_max_length = 64
    fast.save_pretrained(folder)
    return folder


def test_bert_score_is_the_librarys_own_and_the_formula_on_the_encoders_states(tiny_bert: Path) -> None:
    bert_score = pytest.importorskip("bert_score")
    import torch
    from transformers import AutoModel, AutoTokenizer

    ours = bert_scores(ANSWERS[:2], REFERENCES[:2], str(tiny_bert), 1)
    theirs = bert_score.score(ANSWERS[:2], REFERENCES[:2], model_type=str(tiny_bert), num_layers=1)
    for name, part in zip(("bert_precision", "bert_recall", "bert_f1"), theirs, strict=True):
        assert ours[name] == part.tolist()

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bert), AutoModel.from_pretrained(tiny_bert).eval()
    states = []
    for text in (ANSWERS[0], REFERENCES[0]):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[1][0]
        states.append(torch.nn.functional.normalize(hidden[1:-1], dim=-1))  # the special tokens weigh nothing
    similarity = states[0] @ states[1].T
    precision, recall = similarity.amax(1).mean().item(), similarity.amax(0).mean().item()
    assert ours["bert_precision"][0] == pytest.approx(precision, abs=1e-5)
    assert ours["bert_recall"][0] == pytest.approx(recall, abs=1e-5)
    assert ours["bert_f1"][0] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)


def test_a_text_is_as_long_as_the_tokenizer_or_else_the_model_says(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bert_score")
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path)
    AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    long = " ".join(["dogs bark"] * 300)  # the model has 512 positions
    assert bert_scores([long], [long], str(tmp_path), 1)["bert_f1"] == pytest.approx([1.0])
    monkeypatch.setattr("rlhf.evaluation.benchmarks.text_metrics.Context.of", lambda config: Context(None))
    with pytest.raises(InputError, match="has no model_max_length"):
        bert_scores(["a"], ["b"], str(tmp_path), 1)


def test_a_causal_model_is_an_encoder_too(tiny_policy_path: Path) -> None:
    """Its tokenizer says nothing of its length, puts nothing around a text, and an empty one has no state."""
    pytest.importorskip("bert_score")
    import torch
    from transformers import AutoModel, AutoTokenizer

    ours = bert_scores(ANSWERS, REFERENCES, str(tiny_policy_path), 1)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_policy_path), AutoModel.from_pretrained(tiny_policy_path)
    model.layers = model.layers[:1]
    states = []
    for text in (ANSWERS[0], REFERENCES[0]):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        states.append(torch.nn.functional.normalize(hidden, dim=-1))
    similarity = states[0] @ states[1].T
    assert ours["bert_precision"][0] == pytest.approx(similarity.amax(1).mean().item(), abs=1e-5)
    assert ours["bert_recall"][0] == pytest.approx(similarity.amax(0).mean().item(), abs=1e-5)
    assert [ours[name][2] for name in ours] == [0.0] * 3, "an answer without a word"
    assert bert_scores([""], ["a"], str(tiny_policy_path), 1) == {name: [0.0] for name in ours}


def test_readability_of_a_text_and_of_none() -> None:
    figures = readability(["The cat sat on the mat. It was warm there.", ""])
    assert figures["words"] == [10.0, 0.0]
    assert figures["reading_ease"][0] == pytest.approx(206.835 - 1.015 * 5 - 84.6 * 1.0)
    assert math.isnan(figures["grade"][1])


def test_a_distribution_leaves_out_what_is_not_known() -> None:
    figures = distribution([1.0, 2.0, 3.0, None, math.nan])
    assert (figures["n"], figures["mean"], figures["quantiles"]["50"]) == (3, 2.0, 2.0)
    assert figures["ci"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rel=1e-5)
    assert distribution([None]) == {"n": 0, "mean": None, "ci": None, "quantiles": None}
