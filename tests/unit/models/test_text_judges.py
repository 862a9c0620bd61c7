"""Toxicity and embeddings of tiny models: as the library's own pipeline and as the mean by hand, whatever the batch."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from rlhf.errors import InputError

TEXTS = ["what is it", "rude words are bad", "the sun", "you are a goat and it is not safe to paint my own goat"] * 2


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", *words])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=1 << 30
    )


@pytest.fixture(scope="module")
def save(tokenizer, tmp_path_factory):
    """Save a tiny random BERT, a classifier where it is given labels, and return its folder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    def save(labels=None, **options):
        torch.manual_seed(0)
        if labels is not None:
            options["id2label"] = dict(enumerate(labels))
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=8,
            initializer_range=0.5,
            **options,
        )
        model = BertModel(config) if labels is None else BertForSequenceClassification(config)
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize(
    ("labels", "options", "toxic"),
    [
        (["neutral", "toxic"], {}, ["toxic"]),
        (["non-toxic", "TOXIC"], {}, ["TOXIC"]),
        (
            ["toxic", "severe_toxic", "insult"],
            {"problem_type": "multi_label_classification"},
            ["toxic", "severe_toxic"],
        ),
        (["LABEL_0"], {}, ["LABEL_0"]),
    ],
)
def test_toxicity_is_what_the_pipeline_says(save, labels, options, toxic):
    from transformers import pipeline

    from rlhf.models.text_judges import ToxicityClassifier

    folder = save(labels, **options)
    classify = pipeline("text-classification", model=str(folder), top_k=None, max_length=8, truncation=True)
    expected = [max(e["score"] for e in scores if e["label"] in toxic) for scores in classify(TEXTS)]
    for batch_tokens in (1, 12, 99):
        found = ToxicityClassifier(str(folder), batch_tokens=batch_tokens)(TEXTS)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(np.round(expected, 6))) == 4


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification", None])
def test_probabilities_are_those_of_the_model_s_own_kind(save, tokenizer, problem_type):
    """One text, one label, one checkpoint: one number, whoever asks, and it is plain transformers'."""
    import torch
    from transformers import BertForSequenceClassification

    from rlhf.models.text_judges import TextClassifier, ToxicityClassifier

    labels = ["toxic", "insult", "threat"]
    folder = save(labels, problem_type=problem_type)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = torch.stack(
            [model(**tokenizer(t, return_tensors="pt", truncation=True, max_length=8)).logits[0] for t in TEXTS]
        )
    expected = logits.sigmoid() if problem_type == "multi_label_classification" else logits.softmax(-1)
    classifier = TextClassifier(str(folder), device="cpu")
    torch.testing.assert_close(classifier.all_probabilities(TEXTS), expected, atol=1e-6, rtol=0)
    for place, label in enumerate(labels):
        torch.testing.assert_close(classifier.probabilities(TEXTS, label), expected[:, place], atol=1e-6, rtol=0)
    both = expected[:, :2].amax(1) if classifier.independent else expected[:, :2].sum(1)
    torch.testing.assert_close(classifier.probabilities(TEXTS, "toxic", "insult"), both, atol=1e-6, rtol=0)
    assert ToxicityClassifier(str(folder))(TEXTS) == classifier.probabilities(TEXTS, "toxic").tolist()
    assert classifier.labels_of(TEXTS) == [labels[i] for i in expected.argmax(1).tolist()]
    assert not torch.equal(logits.sigmoid()[:, 0], logits.softmax(-1)[:, 0])


def test_a_regression_says_no_probability(save):
    from rlhf.models.text_judges import TextClassifier

    with pytest.raises(InputError, match=r"classifier: .* is a regression \(problem_type in its config.json\)"):
        TextClassifier(str(save(["LABEL_0"], problem_type="regression")))


def test_toxic_labels_by_name(save):
    from rlhf.models.text_judges import ToxicityClassifier

    folder = str(save(["fine", "hate", "threat"]))
    both = ToxicityClassifier(folder, ["hate", "threat"])(TEXTS)
    np.testing.assert_allclose(both, 1 - np.array(ToxicityClassifier(folder, ["fine"])(TEXTS)), atol=1e-6)
    with pytest.raises(InputError, match=r"toxicity_labels: .* has the labels fine, hate, threat; .* got none"):
        ToxicityClassifier(folder)
    with pytest.raises(InputError, match="got insult"):
        ToxicityClassifier(folder, ["insult"])


def test_embeddings_are_means_over_the_texts_own_tokens(save, tokenizer):
    import torch
    from transformers import BertModel

    from rlhf.models.text_judges import Embedder

    folder = save()
    model = BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = [
            model(**tokenizer(t, return_tensors="pt", truncation=True, max_length=8)).last_hidden_state[0].mean(dim=0)
            for t in TEXTS
        ]
    for batch_tokens in (1, 12, 99):
        found = Embedder(str(folder), batch_tokens=batch_tokens)(TEXTS)
        np.testing.assert_allclose(found, torch.stack(alone).numpy(), atol=1e-5)


def test_a_special_token_that_a_text_spells_out_is_text(save, tokenizer):
    """It was the token itself: an answer could end, or mask, what its judge reads."""
    from rlhf.models.text_judges import TextClassifier

    classifier, asked = TextClassifier(str(save(["bad", "good"]))), []
    forward = classifier.model.forward

    def seen(**batch):
        asked.extend(batch["input_ids"].tolist())
        return forward(**batch)

    classifier.model.forward = seen
    classifier.all_probabilities(["[PAD]"], pairs=["[PAD]"])
    assert asked == [[tokenizer.unk_token_id] * 6], "[, PAD and ], each an unknown word"


def test_a_sentence_transformers_folder_s_pooling_is_read(save, tmp_path):
    from rlhf.models.text_judges import Embedder

    plain = save()
    folder = tmp_path / "sentence"
    shutil.copytree(plain, folder / "0_Transformer")

    def write(name, content):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
    ]
    write("modules.json", modules)
    write("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    np.testing.assert_allclose(Embedder(str(folder))(TEXTS), Embedder(str(plain))(TEXTS), atol=1e-6)

    write("0_Transformer/sentence_bert_config.json", {"max_seq_length": 3})
    cut = [" ".join(text.split()[:3]) for text in TEXTS]
    np.testing.assert_allclose(Embedder(str(folder))(TEXTS), Embedder(str(plain))(cut), atol=1e-5)

    write("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True})
    assert np.abs(Embedder(str(folder))(TEXTS) - Embedder(str(plain))(cut)).max() > 0.01

    write("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True})
    with pytest.raises(InputError, match="pooling_mode_max_tokens"):
        Embedder(str(folder))
    write("1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    write("modules.json", [*modules, {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}])
    with pytest.raises(InputError, match="Dense"):
        Embedder(str(folder))


def test_no_texts_no_values(save):
    from rlhf.models.text_judges import ToxicityClassifier

    assert ToxicityClassifier(str(save(["LABEL_0"])))([]) == []


@pytest.mark.parametrize("kind", ["ToxicityClassifier", "Embedder"])
def test_a_model_that_is_not_there_is_named(kind, tmp_path):
    from rlhf.models import text_judges

    with pytest.raises(InputError, match=r"_model: .*nowhere.* cannot be loaded"):
        getattr(text_judges, kind)(str(tmp_path / "nowhere"))


def test_texts_that_are_too_long_are_cut_and_that_is_said_once(save, capsys):
    from rlhf.models.text_judges import TextClassifier

    classifier = TextClassifier(str(save(["LABEL_0"])), "toxicity_model")
    capsys.readouterr()
    classifier.all_probabilities(["what is it"])
    assert capsys.readouterr().err == ""
    for _ in range(2):
        classifier.all_probabilities(["what is it", "the sun " * 5])
    assert capsys.readouterr().err == f"toxicity_model: {classifier.spec} reads 8 tokens: longer texts are cut\n"
