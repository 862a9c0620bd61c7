from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import PolicySource

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "evaluate_text_recipe", ROOT / "recipes" / "evaluation" / "evaluate_text.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate_text_recipe"] = module
    spec.loader.exec_module(module)
    return module


def _rows(path: Path, n: int = 5) -> Path:
    row = [{"role": "user", "content": "what is the river ?"}, {"role": "assistant", "content": "the river is mora ."}]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for _ in range(n)))
    return path


def test_two_models_on_two_data_sets(recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    data = {name: str(_rows(tmp_path / f"{name}.jsonl")) for name in ("first", "<second>")}
    config = recipe.EvaluateTextConfig(
        output=tmp_path / "out",
        models=dict.fromkeys("ab", PolicySource(checkpoint=tiny_policy_path)),
        data=data,
        rows=3,
        sampling=SamplingParams(temperature=0.0, max_new_tokens=8),
    )
    recipe.main(config)
    rows = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 3
    closing = json.loads((tmp_path / "out/stage.json").read_text())["closing"]
    assert closing["suspicious"] == suspicious_ends(row["finished"] for row in rows) != []
    figures = json.loads((tmp_path / "out/text_metrics.json").read_text())
    assert figures["first"]["a"] == figures["first"]["b"]  # the same model
    assert figures["first"]["a"]["rouge1"]["n"] == 3
    assert figures["first"]["reference"]["words"]["mean"] == 4.0
    page = (tmp_path / "out/index.html").read_text()
    assert "&lt;second&gt;" in page and "<second>" not in page


def test_a_row_that_a_model_has_no_room_for_is_left_out_or_refused(
    recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path
) -> None:
    """The model's context is 256 tokens; before, such a row was cut, and only stderr said so."""
    pytest.importorskip("rouge_score")
    file = _rows(tmp_path / "rows.jsonl", 2)
    long = [{"role": "user", "content": "what is the river ? " * 90}, {"role": "assistant", "content": "mora ."}]
    file.write_text(file.read_text() + json.dumps({"messages": long}) + "\n")
    settings = {
        "models": {"a": PolicySource(checkpoint=tiny_policy_path)},
        "data": {"d": str(file)},
        "sampling": SamplingParams(temperature=0.0, max_new_tokens=4),
    }
    recipe.main(recipe.EvaluateTextConfig(output=tmp_path / "out", too_long="skip", **settings))
    closing = json.loads((tmp_path / "out/stage.json").read_text())["closing"]
    assert closing["rows_used"] == 2 and closing["left_out"] == {"too long a prompt": 1}
    assert closing["figures"] == {"prompts_without_room": 1}
    with pytest.raises(InputError, match=r"models\.a: 1 of 3 prompts leave no room for 4 new tokens"):
        recipe.main(recipe.EvaluateTextConfig(output=tmp_path / "refused", too_long="refuse", **settings))


def test_rows_without_a_reference_are_refused(recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}))
    config = recipe.EvaluateTextConfig(
        output=tmp_path / "out",
        models={"a": PolicySource(checkpoint=tiny_policy_path)},
        data={"d": str(tmp_path / "rows.jsonl")},
    )
    with pytest.raises(InputError, match="assistant"):
        recipe.main(config)
    assert not (tmp_path / "out").exists()


def test_bert_score_needs_model_and_layer(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BERTScore needs both"):
        recipe.EvaluateTextConfig(
            output=tmp_path, models={"a": PolicySource(checkpoint=tmp_path)}, data={"d": "x"}, bert_model="folder"
        )


def test_a_model_does_not_take_the_references_name(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reference is the name"):
        recipe.EvaluateTextConfig(
            output=tmp_path, models={"reference": PolicySource(checkpoint=tmp_path)}, data={"d": "x"}
        )


@pytest.mark.parametrize(
    ("layers", "words"), [(99, "bert_layers: must lie in 0 to"), (1, "bert_model: .* cannot be loaded")]
)
def test_the_encoder_is_looked_at_before_anything_is_sampled(
    recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path, layers: int, words: str
) -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("bert_score")
    encoder = tiny_policy_path if layers == 99 else tmp_path / "missing"
    data = {"d": str(_rows(tmp_path / "rows.jsonl"))}
    config = recipe.EvaluateTextConfig(
        output=tmp_path / "out",
        models={"a": PolicySource(checkpoint=tiny_policy_path)},
        data=data,
        bert_model=str(encoder),
        bert_layers=layers,
    )
    with pytest.raises(InputError, match=words):
        recipe.main(config)
    assert not (tmp_path / "out").exists()
