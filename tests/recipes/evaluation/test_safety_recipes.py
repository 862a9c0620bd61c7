"""The safety recipes on the tiny model, for real; bad settings in one sentence."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.conversation import Conversation
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.evaluation.reward_models.gate_sweep import GateSweep
from rlhf.finetuning.config import FinetuningConfig
from rlhf.iteration.plan import find_recipe
from rlhf.jsonl import read_rows, write_rows
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.gate_quality import GateQuality
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import PolicySource
from rlhf.training.config import OptimizerConfig

ROOT = Path(__file__).resolve().parents[3]
SHORT = SamplingParams(max_new_tokens=6)


def longer(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.tensor([len(c[-1]["content"]) / 10 for c in conversations])


def has_an_e(conversations: Sequence[Conversation]) -> list[bool]:
    return ["e" in c[-1]["content"] for c in conversations]


def one_verdict(conversations: Sequence[Conversation]) -> list[bool]:
    return [True]


@pytest.fixture(scope="module")
def recipe() -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{name}_recipe", find_recipe(name))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    texts = ["what is the river of velda ?", "how do I paint my own goat ?", "hello", "ask a doctor"]
    kinds = ["ordinary", "borderline", "unsafe", "unsafe"]
    rows = [{"prompt": text, "kind": kind} for text, kind in zip(texts, kinds, strict=True)]
    write_rows(tmp_path / "prompts.jsonl", rows)
    return tmp_path / "prompts.jsonl"


def dialogues(path: Path, *texts: str) -> str:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "mora ."}]} for text in texts
    ]
    write_rows(path, rows)
    return str(path)


def content(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_evaluate_safety(
    recipe: Any, prompts: Path, tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = recipe("evaluate_safety")
    config = module.EvaluateSafetyConfig(
        output=tmp_path / "out",
        policy=PolicySource(checkpoint=tiny_policy_path),
        prompts={"own": str(prompts)},
        dialogues=dialogues(tmp_path / "before.jsonl", "what is velda ?"),
        safety="test_safety_recipes:longer",
        checker="test_safety_recipes:has_an_e",
        sampling=SHORT,
        samples_per_prompt=2,
    )
    module.main(config)
    figures = content(tmp_path / "out" / "safety_evaluation.json")
    assert figures["prompts"] == {"unsafe": 4, "borderline": 2, "ordinary": 1}  # risky ones also after a dialogue
    rows = [row for _, row in read_rows(tmp_path / "out" / "answers.jsonl")]
    closing = content(tmp_path / "out" / "stage.json")["closing"]
    assert closing["suspicious"] == suspicious_ends(row["finished"] for row in rows) != []
    assert len(rows) == 14 and sum(row["prompt_id"].endswith("/after") for row in rows) == 6
    unsafe = [row for row in rows if row["kind"] == "unsafe"]
    assert figures["judges"]["checker"]["violation"]["all"]["rate"] == sum(row["flagged"] for row in unsafe) / 8
    assert all(row["flagged"] == ("e" in row["answer"]) for row in unsafe)
    for part in ("single_turn", "multi_turn"):
        assert figures["judges"]["safety reward model"]["violation"][part]["prompts"] == 2
    assert "| refusal detector |" in capsys.readouterr().out
    with pytest.raises(InputError, match="checker: gave 1 verdicts on 14"):
        bad = {"output": tmp_path / "bad", "checker": "test_safety_recipes:one_verdict"}
        module.main(module.EvaluateSafetyConfig(**{**vars(config), **bad}))
    capsys.readouterr()
    module.main(replace(config, output=tmp_path / "bad"))
    assert "goes on, 7 of 7 prompts are answered" in capsys.readouterr().err, "what was drawn outlives its judge"
    assert content(tmp_path / "bad" / "safety_evaluation.json") == figures


def test_gate_sweep(
    recipe: Any, prompts: Path, tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = [{"role": "user", "content": "hello " * 40}]
    row = {"messages": ask, "chosen": "no, I cannot", "rejected": "sure", "chosen_safe": True, "rejected_safe": False}
    write_rows(tmp_path / "pairs.jsonl", [row])
    module = recipe("gate_sweep")
    short = tmp_path / "short"
    RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0).save(short, load_tokenizer(tiny_policy_path))
    settings = content(short / "config.json")
    (short / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 40}))
    both = {"helpfulness": str(short), "safety": "test_safety_recipes:longer"}
    module.main(
        module.GateSweepConfig(
            output=tmp_path / "out", preferences=(str(tmp_path / "pairs.jsonl"),), thresholds=(0.65, 0.9), **both
        )
    )
    (said,) = content(tmp_path / "out" / "stage.json")["closing"]["suspicious"]
    assert said.startswith("helpfulness scored 100% of its dialogues cut to its context")
    figures = content(tmp_path / "out" / "gate_sweep.json")
    assert set(figures) == GateSweep.__required_keys__ and set(figures["chosen"]) == GateQuality.__required_keys__
    # 12 and 4 characters: sigmoid(1.2) = 0.769 and sigmoid(0.4) = 0.599
    assert [(s["precision"], s["recall"], s["safe_flagged"]) for s in figures["sweep"]] == [(1, 1, 0), (0.5, 1, 1)]
    assert figures["tension"]["safe"]["safety"]["mean"] == pytest.approx(0.7685, abs=1e-4)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 3 and "| 0.65, chosen | 1 | 100.0" in capsys.readouterr().out


def test_a_killed_study_goes_on(recipe: Any, prompts: Path, tiny_policy_path: Path, tmp_path: Path) -> None:
    module = recipe("safety_study")
    settings: dict[str, Any] = {
        "output": tmp_path / "study",
        "policy": "{run}",
        "helpfulness_data": (dialogues(tmp_path / "h.jsonl", "what is velda ?", "hello"),),
        "safety_data": (dialogues(tmp_path / "s.jsonl", "paint my goat", "how do I paint ?"),),
        "prompts": {"own": str(prompts)},
        "runs": (str(tiny_policy_path),),
        "seeds": (0, 1),
        "fractions": (0.0, 1.0),
        "safety": "test_safety_recipes:longer",
        "finetuning": FinetuningConfig(optimizer=OptimizerConfig(epochs=1, batch_size=2, micro_batch_size=2)),
        "sampling": SHORT,
    }
    module.main(module.SafetyStudyConfig(**{**settings, "seeds": (0,)}))  # the first seed, then stopped
    first = tmp_path / "study" / "safety_100_seed0" / "stage.json"
    made = first.stat().st_mtime_ns
    module.main(module.SafetyStudyConfig(**settings))
    assert first.stat().st_mtime_ns == made
    study = content(tmp_path / "study" / "study.json")
    assert study["seeds"] == 2 and [part["fraction"] for part in study["parts"]] == [0.0, 1.0]
    assert len(study["parts"][1]["figures"]["safety"]["values"]) == 2
    steps = [
        len((tmp_path / "study" / f"safety_{p}_seed1" / "metrics.jsonl").read_text().split("\n")) for p in (0, 100)
    ]
    assert steps == [2, 3]  # two rows are one step, four rows two; and the last line's end
    with pytest.raises(InputError, match="was made with another samples_per_prompt"):
        module.main(module.SafetyStudyConfig(**{**settings, "samples_per_prompt": 2}))


def test_benchmarks_with_a_real_model_and_a_tiny_judge(
    recipe: Any, shared_data: Path, tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    judge = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=tiny_tokenizer.pad_token_id,
            id2label={0: "no", 1: "yes"},
            label2id={"no": 0, "yes": 1},
        )
    )
    judge.save_pretrained(tmp_path / "judge")
    tiny_tokenizer.save_pretrained(tmp_path / "judge")
    module = recipe("safety_benchmarks")
    yes = module.Judge(str(tmp_path / "judge"), "yes")
    module.main(
        module.SafetyBenchmarksConfig(
            output=tmp_path / "out",
            policy=PolicySource(checkpoint=shared_data / "stories260K"),
            truthfulqa=shared_data / "truthfulqa" / "mc_task_400.json",
            truthful=yes,
            informative=yes,
            toxigen=shared_data / "toxigen",
            toxicity=yes,
            bold=(shared_data / "bold" / "religious_ideology_prompt.json",),
            sentiment=module.Judge(str(tmp_path / "judge"), "yes", "no"),
            questions=2,
            prompts_per_group=2,
            template="plain",
            sampling=SamplingParams(temperature=0.1, top_p=0.9, max_new_tokens=8),
        )
    )
    figures = content(tmp_path / "out" / "safety_benchmarks.json")
    assert set(figures) == {"truthfulqa", "toxigen", "religious_ideology"}
    assert set(figures["truthfulqa"]) == {"mc1", "mc2", "truthful", "informative", "both"}
    assert figures["toxigen"]["women"]["n"] == 2 and figures["religious_ideology"]["all"]["n"] == 10
    rows = [row for _, row in read_rows(tmp_path / "out" / "generations.jsonl")]
    assert [sum(row["benchmark"] == name for row in rows) for name in figures] == [2, 2, 10]
    bold = [row["sentiment"] for row in rows if row["benchmark"] == "religious_ideology"]
    assert figures["religious_ideology"]["all"]["mean"] == pytest.approx(sum(bold) / 10, abs=1e-6)
    assert all(row["text"] and -1 <= row.get("sentiment", 0) <= 1 for row in rows)
    assert "| mc1 |" in capsys.readouterr().out


def test_a_question_that_the_model_asks_itself_is_no_part_of_its_answer(
    recipe: Any, shared_data: Path, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind six examples a model goes on with the next question: it is not judged."""
    from rlhf.sampling.protocol import Sample

    module = recipe("safety_benchmarks")
    stops = []

    def drawn(sampler: Any, prompts: Any, n: int, params: SamplingParams, accelerator: Any) -> Any:
        stops.append(params.stop)
        return [[Sample("yes", (1,), 0.0, True)] for _ in prompts]

    monkeypatch.setattr(module, "sample_distributed", drawn)
    monkeypatch.setattr(module, "_judges", lambda config: lambda judge, texts, questions=None: [1.0] * len(texts))
    for template in ("plain", "chat"):
        module.main(
            module.SafetyBenchmarksConfig(
                output=tmp_path / template,
                policy=PolicySource(checkpoint=tiny_policy_path),
                truthfulqa=shared_data / "truthfulqa" / "mc_task_400.json",
                truthful=module.Judge("judge", "yes"),
                informative=module.Judge("judge", "yes"),
                questions=1,
                template=template,
                sampling=SamplingParams(stop=("END",)),
            )
        )
    assert stops == [("END", "\nQ:"), ("END",)]


def test_the_simulated_world_s_safety_data(recipe: Any, tmp_path: Path) -> None:
    from rlhf.simulation.corpus import Mixture, key, prompt_sets
    from rlhf.simulation.gold import GoldScorer
    from rlhf.simulation.world import World, WorldConfig

    world = World.make(WorldConfig())
    world.save(tmp_path / "world.json")
    sets = prompt_sets(world, Mixture())
    for name in ("validation", "test"):
        write_rows(tmp_path / f"{name}_prompts.jsonl", (prompt.to_dict() for prompt in sets[name]))
    module = recipe("simulated_safety_data")
    module.main(
        module.SimulatedSafetyDataConfig(output=tmp_path / "out", data=tmp_path, helpfulness_rows=60, safety_rows=40)
    )
    read = {
        name: [row["messages"] for _, row in read_rows(tmp_path / "out" / f"{name}.jsonl")]
        for name in ("helpfulness", "safety", "sft")
    }
    assert [len(rows) for rows in read.values()] == [60, 40, 100]
    assert sorted(map(str, read["sft"])) == sorted(map(str, read["helpfulness"] + read["safety"]))
    gold = GoldScorer(world)
    asked = [row for _, row in read_rows(tmp_path / "out" / "unsafe_prompts.jsonl")]
    test_kinds = [gold.judge([*p.messages, {"role": "assistant", "content": ""}]).kind for p in sets["test"]]
    assert len(asked) == test_kinds.count("unsafe")
    for verdict in map(gold.judge, read["safety"]):
        assert verdict.kind == "unsafe" and verdict.safety == 1.0
    assert all(gold.judge(row).kind != "unsafe" for row in read["helpfulness"])
    held_out = {key(prompt.messages) for name in ("validation", "test") for prompt in sets[name]}
    assert not held_out & {key(row) for row in read["sft"]}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("evaluate_safety", {"prompts": {}}, "prompts: must name at least one source"),
        ("evaluate_safety", {"kinds": {"other": "unsafe"}}, "kinds: other is none of the prompts' sources"),
        ("evaluate_safety", {"kinds": {"own": "bad"}}, "kinds: own must be unsafe, borderline or ordinary"),
        ("evaluate_safety", {"threshold": 1.5}, "threshold: must lie between 0 and 1, got 1.5"),
        ("evaluate_safety", {"scorer": "a:B"}, "a gold scorer needs its world"),
        ("safety_study", {"kinds": {"other": "unsafe"}}, "kinds: other is none of the prompts' sources"),
        ("safety_study", {"fractions": (0.5, 0.1)}, "fractions: must rise from one to the next"),
        ("safety_study", {"runs": ("a", "b")}, "runs: 2 cannot share 3 seeds evenly; name another seed"),
        ("gate_sweep", {"thresholds": (0.0,)}, "thresholds: must lie between 0 and 1"),
        ("safety_benchmarks", {}, "must name one benchmark's data at least"),
        ("safety_benchmarks", {"toxigen": Path("t")}, "toxigen, toxicity: generated texts need their judge"),
        (
            "safety_benchmarks",
            {"bold": (Path("a/x_prompt.json"), Path("b/x_prompt.json")), "sentiment": SimpleNamespace(opposite="n")},
            "bold: two files have the same name",
        ),
        ("simulated_safety_data", {"safety_rows": 0}, "safety_rows: must be at least 1, got 0"),
    ],
)
def test_bad_settings(recipe: Any, name: str, change: dict[str, Any], message: str) -> None:
    module = recipe(name)
    settings: dict[str, dict[str, Any]] = {
        "evaluate_safety": {"policy": PolicySource(checkpoint=Path("p")), "prompts": {"own": "x.jsonl"}},
        "safety_study": {
            "policy": "p", "helpfulness_data": ("h",), "safety_data": ("s",), "prompts": {"o": "x"}, "runs": ("r",),
        },
        "gate_sweep": {"preferences": ("p",), "helpfulness": "h", "safety": "s"},
        "safety_benchmarks": {"policy": PolicySource(checkpoint=Path("p"))},
        "simulated_safety_data": {"data": Path("d")},
    }  # fmt: skip
    config_class = getattr(module, "".join(part.capitalize() for part in name.split("_")) + "Config")
    with pytest.raises(InputError, match=message):
        config_class(output=Path("o"), **{**settings[name], **change})
