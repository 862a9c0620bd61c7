"""A policy that answers: one field in every recipe, checked at the door, opened at one place by a backend."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.models.checkpoint.fields import WholeCheckpoint
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.ppo.policy import PPOPolicyCheck
from rlhf.sampling.chat import ServerConfig
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.sampling.source import (
    BACKENDS,
    AnsweringPolicy,
    EngineConfig,
    PolicyCheck,
    PolicySource,
    ScoringPolicy,
    TokenizedPolicy,
    TrainedPolicy,
)
from rlhf.stage import StageConfig, open_stage

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.py") if not file.name.startswith("_"))
CPU = torch.device("cpu")
PROMPTS = [[{"role": "user", "content": "what is velda ?"}], [{"role": "user", "content": "hello"}]]
PARAMS = SamplingParams(max_new_tokens=8, seed=3)

TRAINED = {
    "sft.policy", "dpo.policy", "ppo.policy", "helpfulness_reward.policy", "safety_reward.policy",
    "rejection_sampling.fine_tune_from", "text_classifier.model", "reward_study.model.policy",
    "average_policies.checkpoints",
}  # fmt: skip
"""Checkpoints that a recipe starts to train from, or averages: nothing samples from them as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    policy: TokenizedPolicy
    rival: AnsweringPolicy | None = None
    scored: ScoringPolicy | None = None
    trained: TrainedPolicy | None = None
    many: dict[str, AnsweringPolicy] = dataclasses.field(default_factory=dict)


def config_of(file: Path) -> type:
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location(f"recipe_for_sources_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: type = typing.get_type_hints(module.main)["config"]
    return found


def notes(hint: Any) -> list[Any]:
    """All that `Annotated` says in a type, at any depth; the checks behind InEachRun too."""
    found = list(getattr(hint, "__metadata__", ()))
    found += [note.check for note in found if hasattr(note, "check")]
    return found + [note for part in typing.get_args(hint) for note in notes(part)]


def fields_of(kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        yield f"{prefix}.{field.name}", hints[field.name]
        plain = typing.get_type_hints(kind)[field.name]
        for part in (plain, *typing.get_args(plain)):
            if dataclasses.is_dataclass(part) and isinstance(part, type) and part is not PolicySource:
                yield from fields_of(part, f"{prefix}.{field.name}")


def test_every_policy_that_answers_or_scores_in_a_recipe_is_a_source() -> None:
    """A checkpoint by itself is one that is trained or merged; options of a source stand nowhere else."""
    sources, checkpoints = set(), set()
    for file in RECIPES:
        for name, hint in fields_of(config_of(file), file.stem):
            said = notes(hint)
            sources |= {name for note in said if isinstance(note, PolicyCheck)}
            checkpoints |= {name for note in said if isinstance(note, WholeCheckpoint | PPOPolicyCheck)}
            assert (
                name.split(".")[-1] not in ("batch_size", "server")
                or "optimizer" in name
                or name == "ppo.ppo.batch_size"
            )
            assert PolicySource not in typing.get_args(hint) or any(isinstance(n, PolicyCheck) for n in said), name
    assert checkpoints == TRAINED
    assert {name.split(".")[0] for name in sources} == {
        "collect_preferences", "context_distillation", "dpo", "evaluate", "evaluate_consistency",
        "evaluate_instructions", "evaluate_safety", "evaluate_text", "evaluate_time_awareness", "ghost_attention",
        "leaderboard", "mt_bench", "red_team",
        "rejection_sampling", "safety_benchmarks", "simple_text_data", "temperature_sweep",
    }  # fmt: skip


def test_no_recipe_makes_a_sampler_of_a_policy_itself() -> None:
    for file in RECIPES:
        names = {
            node.id for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
        }
        assert not names & {"InProcessSampler", "load_base"}, file
        assert "load_policy" not in names or file.stem == "dpo", "which trains one"


def test_the_page_has_every_option_with_its_default() -> None:
    text = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \| [^|]*\|$", text, re.MULTILINE))
    for kind in (PolicySource, ServerConfig):
        for field in dataclasses.fields(kind):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            words = {"None": "none", repr(dataclasses.MISSING): "required"}
            assert rows[field.name] == words.get(repr(default), str(default)), field.name


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"policy": PolicySource()}, "policy: must be given; name its folder with --policy"),
        ({"policy": PolicySource(checkpoint=Path("none"))}, "policy: none does not exist"),
        ({"rival": PolicySource(rows=3), "many": {"a": PolicySource()}}, "many.a: must be given; name its folder"),
        ({"policy": PolicySource(server=ServerConfig("http://a/v1", "m"))}, "policy: must be given; name its folder"),
        ({"scored": {"server": ServerConfig("http://a/v1", "m")}}, "scored.server: its probabilities are read here"),
        ({"rival": {"server": ServerConfig("http://a/v1", "m"), "rows": 3}}, "rival.rows: the server decides that"),
        ({"rival": {"backend_options": {"a": 1}}}, "rival.backend_options: the backend in_process does not heed it"),
        ({"rival": {"backend": "vllm"}}, "rival.backend: must be in_process, server, engine, or package"),
        (
            {"rival": {"backend": "engine"}},
            "rival.engine: must be given for the backend engine, e.g. --rival.engine vllm",
        ),
        ({"rival": {"engine": EngineConfig(), "compile": True}}, "rival.compile: the backend engine does not heed it"),
        ({"scored": {"engine": EngineConfig()}}, "scored.engine: its probabilities are read here, no answers drawn"),
        (
            {"rival": {"engine": EngineConfig(environment=Path("no"))}},
            "rival.engine: there is no vllm in no; make that",
        ),
        ({"rival": {"backend": "no_such:thing"}}, "rival.backend: no_such:thing cannot be imported"),
        ({"rival": {"backend": "server"}}, "rival.server: must be given for the backend server"),
        ({"trained": {"adapter": Path("a")}}, "trained.adapter: the checkpoint is trained after it answered"),
        ({"rival": {"adapter": ROOT / "docs"}}, "adapter: .*docs has no adapter_config.json"),
    ],
)
def test_what_cannot_answer_is_refused_at_the_door(
    given: dict[str, Any], sentence: str, tiny_policy_path: Path, tmp_path: Path
) -> None:
    made = {"policy": {}} | given
    for name, options in made.items():
        if isinstance(options, dict) and name != "many":
            made[name] = PolicySource(**{"checkpoint": tiny_policy_path, **options})
    with pytest.raises(InputError, match=sentence):
        open_stage(Config(output=tmp_path / "out", **made))


def test_options_alone_name_nobody(tiny_policy_path: Path, tmp_path: Path) -> None:
    """A step's YAML says how a policy is held that only some versions have."""
    source = PolicySource(checkpoint=tiny_policy_path)
    stage = open_stage(Config(output=tmp_path / "out", policy=source, scored=PolicySource(quantization="nf4")))
    assert stage.inputs == {"policy": tiny_policy_path}


def test_an_adapter_over_its_base_is_the_checkpoint_of_the_adapter(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = load_policy(tiny_policy_path, adapter=AdapterConfig(r=4, alpha=64, dropout=0.0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1))
    save_policy(model, load_tokenizer(tiny_policy_path), tmp_path / "saved", merge=False)

    def texts(**source: Any) -> list[tuple[int, ...]]:
        drawn = open_sampler(PolicySource(**source), CPU).sample(PROMPTS, 3, PARAMS)
        return [sample.token_ids for some in drawn for sample in some]

    saved = texts(checkpoint=tmp_path / "saved")
    assert texts(checkpoint=tiny_policy_path, adapter=tmp_path / "saved") == saved
    assert texts(checkpoint=tiny_policy_path, adapter=tmp_path / "saved" / "adapter", rows=2) == saved, "peft's folder"
    assert texts(checkpoint=tiny_policy_path) != saved
    with pytest.raises(InputError, match="trained over whole weights"):
        texts(checkpoint=tiny_policy_path, adapter=tmp_path / "saved", quantization="nf4")
    with pytest.raises(InputError, match=r"many\.a\.adapter: .*saved is an adapter already"):
        PolicyCheck().inputs("many.a", PolicySource(checkpoint=tmp_path / "saved", adapter=tmp_path / "saved"), None)


def test_the_weights_are_held_as_the_source_says(tiny_policy_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    held = {
        name: open_sampler(PolicySource(checkpoint=tiny_policy_path, **{name: value}), CPU).model  # type: ignore[attr-defined]
        for name, value in (("dtype", "bfloat16"), ("quantization", "nf4"))
    }
    assert held["dtype"].dtype == torch.bfloat16 and held["quantization"].is_loaded_in_4bit


BACKEND = """
from rlhf.errors import InputError
from rlhf.sampling.protocol import Sample


class Parrot:
    def __init__(self, source, opening):
        self.suffix, self.renderer = source.backend_options["suffix"], opening.renderer
        if opening.early_rejection is not None:
            raise InputError("early_rejection: the parrot says all it has to say")

    def sample(self, prompts, num_samples, params, keys=None):
        said = [prompt[-1]["content"] + self.suffix for prompt in prompts]
        ids = [tuple(self.renderer.tokenizer(text, add_special_tokens=False).input_ids) for text in said]
        return [[Sample(text, i, -1.0, True)] * num_samples for text, i in zip(said, ids)]


def broken(source, opening):
    raise RuntimeError("no engine")


def nothing(source, opening):
    return 3
"""


@pytest.fixture
def parrot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "parrot_of_the_test.py").write_text(BACKEND, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "parrot_of_the_test:"


def test_a_backend_outside_the_package_answers(parrot: str, tiny_policy_path: Path) -> None:
    def source(name: str) -> PolicySource:
        options = {"suffix": " !"}
        return PolicySource(checkpoint=tiny_policy_path, backend=parrot + name, backend_options=options)

    drawn = open_sampler(source("Parrot"), CPU).sample(PROMPTS, 2, PARAMS)
    assert [[sample.text for sample in some] for some in drawn] == [["what is velda ? !"] * 2, ["hello !"] * 2]
    with pytest.raises(InputError, match=r"policy.backend: .*:broken fails \(RuntimeError: no engine, .*parrot.*:19\)"):
        open_sampler(source("broken"), CPU)
    with pytest.raises(InputError, match=r"policy\.backend: .*:nothing gives a int, which has no `sample`"):
        open_sampler(source("nothing"), CPU)


def test_a_new_backend_of_the_library_s_is_a_line(
    parrot: str, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = type(BACKENDS["in_process"])(parrot + "Parrot", takes=("backend_options",))
    monkeypatch.setitem(BACKENDS, "parrot", backend)
    given = {"checkpoint": tiny_policy_path, "backend": "parrot", "backend_options": {"suffix": "?"}}
    assert open_sampler(PolicySource(**given), CPU).sample(PROMPTS, 1, PARAMS)[1][0].text == "hello?"
    with pytest.raises(InputError, match=r"policy\.quantization: the backend parrot does not heed it"):
        open_stage(Config(output=tmp_path / "out", policy=PolicySource(**given, quantization="nf4")))


def test_a_served_model_needs_no_checkpoint_where_texts_are_wanted(chat_server: Any) -> None:
    source = PolicySource(server=ServerConfig(chat_server.url, "tiny"))
    assert PolicyCheck().inputs("rival", source, None) == {}
    (first,), (second,) = open_sampler(source, CPU, field="rival").sample(PROMPTS, 1, PARAMS)
    assert isinstance(first, Sample) and second.text.startswith("hello") and second.token_ids == ()
    chat_server.models = ["another"]
    with pytest.raises(InputError, match=r"set rival\.server\.model"):
        open_sampler(source, CPU, field="rival").sample(PROMPTS, 1, PARAMS)


def test_both_forms_are_one_config(tiny_policy_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(
        f"output: out\npolicy: {{quantization: nf4, rows: 5}}\nrival: {tiny_policy_path}\n", encoding="utf-8"
    )
    words = ["--config", str(file), "--policy", str(tiny_policy_path), "--many.a", "x", "--many.a.dtype", "bfloat16"]
    made = parse_config(Config, words)
    assert made.policy == PolicySource(checkpoint=tiny_policy_path, quantization="nf4", rows=5)
    assert made.rival == PolicySource(checkpoint=tiny_policy_path)
    assert made.many == {"a": PolicySource(checkpoint=Path("x"), dtype="bfloat16")}
