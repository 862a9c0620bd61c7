"""ToxiGen and BOLD: groups and prompts of the real files, figures by group, what a classifier says."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.generated_groups import (
    TOXIGEN_GROUPS,
    GroupPrompt,
    draw,
    read_bold,
    read_toxigen,
    sentiment_figures,
    toxicity_figures,
)
from rlhf.intervals import wilson
from rlhf.models.text_judges import TextClassifier


@pytest.fixture(scope="module")
def classifier(tiny_tokenizer, tmp_path_factory):
    """A folder with a random classifier of three labels, whose tokenizer is the tiny one."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=tiny_tokenizer.pad_token_id,
        id2label={0: "negative", 1: "neutral", 2: "positive"},
        label2id={"negative": 0, "neutral": 1, "positive": 2},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("classifier")
    model = LlamaForSequenceClassification(config)
    model.score.weight.data.normal_()  # else it says about the same of every text
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_says_the_same_in_any_batch(classifier):
    found = TextClassifier(str(classifier))
    texts = ["hello", "what is the river of velda ? mora .", "no", "sure " * 100]
    together = found.probabilities(texts, "positive")
    alone = torch.cat([found.probabilities([text], "positive") for text in texts])
    assert torch.allclose(together, alone, atol=1e-6) and together.unique().numel() == 4
    sums = sum(found.probabilities(texts, label) for label in found.labels)
    assert torch.allclose(sums, torch.ones(4))
    ids = found.tokenizer("no", return_tensors="pt")
    with torch.no_grad():
        expected = found.model(**ids).logits.softmax(-1)[0, 2]
    assert together[2] == pytest.approx(expected.item(), abs=1e-6)
    pairs = found.probabilities(["hello", "hello"], "positive", pairs=["a", "b"])
    assert pairs[0] != pairs[1]


def test_a_roberta_reads_as_much_as_it_has_positions_for(tiny_tokenizer, tmp_path):
    """ToxiGen's own classifier is one, and its tokenizer does not say how long a text may be."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=20, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert TextClassifier(str(tmp_path)).probabilities(["sure " * 100], "LABEL_1").shape == (1,)


def test_bad_classifiers(classifier):
    with pytest.raises(InputError, match="has no label 'toxic', but negative, neutral, positive"):
        TextClassifier(str(classifier)).probabilities(["a"], "toxic")
    with pytest.raises(InputError, match="classifier: nowhere cannot be loaded"):
        TextClassifier("nowhere")


def test_toxigen_s_files(shared_data, tmp_path):
    prompts = read_toxigen(shared_data / "toxigen")
    assert {prompt.group for prompt in prompts} == {"women"} and len(prompts) == 2000
    assert "\\n" not in prompts[0].text and "\n- " in prompts[0].text and len(TOXIGEN_GROUPS) == 13
    (tmp_path / "hate_martians_1k.txt").write_text("- a")
    with pytest.raises(InputError, match="of no group of ToxiGen's"):
        read_toxigen(tmp_path)
    with pytest.raises(InputError, match=r"holds no hate_<group>_1k.txt"):
        read_toxigen(tmp_path / "none")


def test_bold_leaves_out_the_two_smallest_religions(shared_data, tmp_path):
    religions = {prompt.group for prompt in read_bold(shared_data / "bold" / "religious_ideology_prompt.json")}
    assert religions == {"judaism", "christianity", "islam", "buddhism", "sikhism"}  # the paper's: no Hinduism, Atheism
    assert len({prompt.group for prompt in read_bold(shared_data / "bold" / "profession_prompt.json")}) == 18
    (tmp_path / "x_prompt.json").write_text(json.dumps(["a"]))
    with pytest.raises(InputError, match=r"is no <domain>_prompt.json of BOLD"):
        read_bold(tmp_path / "x_prompt.json")


def test_figures_by_group():
    prompts = [GroupPrompt("a", "x"), GroupPrompt("a", "y"), GroupPrompt("b", "z")]
    toxic = toxicity_figures(prompts, [0.9, 0.5, 0.8])
    assert toxic["all"] == {"mean": pytest.approx(2 / 3), "ci": wilson(2 / 3, 3).ci, "n": 3}
    assert toxic["a"]["mean"] == 0.5 and toxic["b"]["n"] == 1
    assert sentiment_figures(prompts, [-1.0, 0.5, 1.0])["a"]["mean"] == -0.25
    assert [p.text for p in draw(prompts, 1, 0) if p.group == "b"] == ["z"]
    assert len(draw(prompts, 1, 0)) == 2 and draw(prompts, None, 0) == prompts
