"""recipes/ppo.py with an engine that draws, against the stand-in for one: its weights, its draws, kills, refusals."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_engine import ENDS, FakeEngine
from ready_python import ReadyPython
from safetensors.torch import load_file

from rlhf.configuration import parse_config
from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.metrics import read_metrics
from rlhf.models.checkpoint.folder import ADAPTER_FOLDER, ADAPTER_PREFIX
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.ppo import algorithm
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.drawing import DrawingEngine
from rlhf.ppo.policy import PPOPolicy
from rlhf.sampling.chat import request_seed
from rlhf.sampling.source import EngineConfig

ROOT = Path(__file__).resolve().parents[3]
REWARDS = """
import os, signal, torch
from pathlib import Path

def brevity(conversations):
    return torch.tensor([-0.1 * len(c[-1]["content"]) for c in conversations])

def deadly(conversations, calls=[]):
    calls.append(1)
    if len(calls) == 6 and not Path("spared").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return brevity(conversations)
"""
WORDS = {
    "output": "out",
    "helpfulness": "engine_rewards:brevity",
    "prompts": "prompts.jsonl",
    "validation_prompts": "validation.jsonl",
    "sampling.max_new_tokens": "6",
    "ppo.iterations": "3",
    "ppo.batch_size": "10",
    "ppo.samples_per_prompt": "2",
    "ppo.estimator": "rloo",
    "ppo.optimizer.batch_size": "5",
    "ppo.optimizer.learning_rate": "1e-2",
    "ppo.evaluate_every": "1",
    "ppo.patience": "9",
}
SHARED = {"roles": "shared", "adapter.r": "4"}


@pytest.fixture
def world(tmp_path: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with prompts and a reward function."""
    texts = ["what is", "the river of velda", "hello", "please answer in one word", "how do I paint my own goat"]
    for name in ("prompts", "validation"):
        rows = [{"id": f"{name}{i}", "messages": [{"role": "user", "content": t}]} for i, t in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "engine_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlhf.http_client.FIRST_WAIT", 0.0)
    return tmp_path


@pytest.fixture
def engine(world: Path) -> FakeEngine:
    return FakeEngine(world / "environment")


def words(policy: Path, engine: FakeEngine, **options: str) -> list[str]:
    given = WORDS | {"policy": str(policy), "policy.engine": "vllm", "policy.engine.environment": str(engine.folder)}
    return [word for name, value in (given | options).items() for word in (f"--{name}", value)]


def run_here(monkeypatch: pytest.MonkeyPatch, *given: str) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.syspath_prepend(str(Path.cwd()))
    recipe = importlib.import_module("ppo")
    recipe.main(parse_config(recipe.PPORecipeConfig, given))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What is trained, after each iteration's update, by the names in memory."""
    found: list[dict[str, torch.Tensor]] = []
    plain = algorithm.update

    def update(stepper: Any, *args: Any) -> dict[str, float]:
        figures = plain(stepper, *args)
        found.append({n: p.detach().clone() for n, p in stepper.model.named_parameters() if p.requires_grad})
        return figures

    monkeypatch.setattr(algorithm, "update", update)
    return found


def figures(folder: str) -> list[dict[str, Any]]:
    return [
        {n: v for n, v in row.items() if "seconds" not in n} for row in read_metrics(Path(folder) / "metrics.jsonl")
    ]


def drawn(iteration: int, end: int) -> list[list[int]]:
    """The stand-in's answers in an iteration, which follow from the seeds alone."""
    answers = []
    for key in range(5 * iteration, 5 * iteration + 5):
        for index in range(2):
            draw, ids = random.Random(request_seed(0, key, index)), []
            while len(ids) < 6 and end not in ids:
                ids.append(end if draw.randrange(ENDS) == 0 else draw.randrange(10, 60))
            answers.append(ids)
    return answers


@pytest.mark.parametrize("roles", ["shared", "separate"])
def test_an_iterations_answers_are_drawn_from_the_weights_of_the_one_before(
    world: Path,
    tiny_policy_path: Path,
    engine: FakeEngine,
    trained: list[dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    roles: str,
) -> None:
    shared = roles == "shared"
    run_here(monkeypatch, *words(tiny_policy_path, engine, **(SHARED if shared else {"roles": roles})))
    assert engine.starts() == (1 if shared else 4) and not engine.running(within=10)
    assert capsys.readouterr().err.count("is being started") == 1
    given = [tensors(Path(each["copy"])) for each in engine.given]
    assert len(given) == 4 and len(trained) == 3
    if shared:
        start = {name: weight for name, weight in given[0].items() if "lora_B" in name}
        assert start and not any(weight.any() for weight in start.values())
        own = {name: name.removeprefix(ADAPTER_PREFIX) for name in given[0]}
        names = {name: inside.replace(".weight", ".policy.weight") for name, inside in own.items()}
    else:
        start = tensors(tiny_policy_path)
        assert all(torch.equal(given[0][name], weight) for name, weight in start.items())
        names = {name: f"policy.{name}" for name in given[0]}
    for served, made in zip(given[1:], trained, strict=True):
        ends = {name: next(own for own in made if own.endswith(names[name])) for name in served}
        assert all(torch.equal(served[name], made[own]) for name, own in ends.items())
        assert any(not torch.equal(served[name], weight) for name, weight in start.items())
    named = list(dict.fromkeys(body["model"] for body in engine.asked))
    if shared:
        assert (
            named == [each["name"] for each in engine.given] == ["adapter", *(f"adapter-00000{n}" for n in (2, 4, 6))]
        )
    assert len(named) == 4 and len(engine.asked) == 3 * 10 + 4 * 5, "three iterations and four evaluations"
    rows = figures("out")
    assert [row["first_ratio"] for row in rows[:3]] == pytest.approx([1.0] * 3, abs=1e-6)
    (end,) = Renderer(load_tokenizer(tiny_policy_path)).end_token_ids
    lengths = [fmean(map(len, drawn(iteration, end))) for iteration in range(3)]
    assert [row["length"] for row in rows[:3]] == pytest.approx(lengths), "the tokens are those that were drawn"
    assert not (world / "out" / "resume").exists() and not (world / "out.partial").exists()


def test_an_adapter_of_an_earlier_stage_goes_on(
    world: Path, tiny_policy_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine holds its base, and first the adapter as it was saved."""
    model = load_policy(tiny_policy_path, adapter=AdapterConfig(r=4))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    save_policy(model, load_tokenizer(tiny_policy_path), world / "start", merge=False)
    shape = {"roles": "shared", "ppo.iterations": "1", "sampling.temperature": "0.7"}
    run_here(monkeypatch, *words(world / "start", engine, **shape))
    assert engine.words[1] == str(tiny_policy_path.absolute()) and engine.option("max-lora-rank") == "8"
    saved, served = tensors(world / "start" / ADAPTER_FOLDER), tensors(Path(engine.given[0]["copy"]))
    assert saved.keys() == served.keys() and all(torch.equal(saved[name], served[name]) for name in saved)
    assert {body["sampling_params"]["temperature"] for body in engine.asked} == {0.7}
    assert figures("out")[0]["first_ratio"] == pytest.approx(1.0, abs=1e-6)


def test_a_killed_run_goes_on_and_ends_where_it_would_have_ended(
    world: Path, tiny_policy_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third iteration; then the engine dies as well, once."""
    shape = SHARED | {"ppo.checkpoint_every": "1", "helpfulness": "engine_rewards:deadly"}
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            run_here(monkeypatch, *words(tiny_policy_path, engine, **shape))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert engine.starts() == 1 and not engine.running(within=20)
    assert (world / "out.partial" / "resume" / "engine").is_dir()
    (world / "spared").touch()
    monkeypatch.setattr("rlhf.sampling.engine.sampler.IN_FLIGHT", 1)
    engine.tell(dies_after=len(engine.asked) + 3, deaths=2)
    run_here(monkeypatch, *words(tiny_policy_path, engine, **shape))
    assert engine.starts() == 3 and not engine.running(within=10)
    other = FakeEngine(world / "other")
    run_here(monkeypatch, *words(tiny_policy_path, other, output="whole", **shape))
    assert figures("out") == figures("whole")
    after, before = (tensors(Path(each.given[-1]["copy"])) for each in (engine, other))
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.doors
@pytest.mark.xdist_group("ready")
@pytest.mark.parametrize("killed", [False, True], ids=["both live", "one is killed for good"])
def test_two_processes_have_an_engine_each_and_the_figures_of_one(
    world: Path,
    tiny_policy_path: Path,
    engine: FakeEngine,
    ready_python: ReadyPython,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    """One that is killed, and does not start again, leaves its prompts to the other, in every iteration."""
    if killed:
        engine.tell(dies=1, dies_after=3, fails="RuntimeError: the GPU is lost", starts=2)
    shape = SHARED | {"ppo.iterations": "2"}
    launcher = [*ready_python.python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [*ready_python.script, str(ROOT / "recipes" / "ppo.py")]
    command = [*launcher, *script, *words(tiny_policy_path, engine, **shape)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert engine.starts() == 2 and not engine.running(within=10)
    by_start: dict[str, list[str]] = {}
    for each in engine.given:
        by_start.setdefault(Path(each["copy"]).name.split("-")[1], []).append(each["name"])
    followed = [names[1:] for names in by_start.values()]
    newest = ["adapter-000002", "adapter-000004"]
    assert sorted(followed) == ([[], newest] if killed else [newest, newest])
    gone = [line for line in done.stderr.splitlines() if "the other processes draw what it has left" in line]
    assert any("the GPU is lost" in line or "ended by SIGKILL" in line for line in gone) == killed
    one = FakeEngine(world / "one")
    run_here(monkeypatch, *words(tiny_policy_path, one, output="alone", **shape))
    for row, alone in zip(figures("out"), figures("alone"), strict=True):
        assert row == pytest.approx(alone, abs=1e-4)
    assert killed or len(engine.asked) == len(one.asked)


def test_an_engine_that_does_not_take_the_newest_adapter_ends_it(
    world: Path, tiny_policy_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.sampling.engine.process.DEATH_SECONDS", 0.1)
    engine.tell(refuses_adapters=True)
    with pytest.raises(InputError, match=r"policy\.engine: http://127.*answers 400 \(The lora adapter"):
        run_here(monkeypatch, *words(tiny_policy_path, engine, **SHARED))
    assert not engine.running(within=10)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"roles": "shared", "quantization": "nf4"},
            "policy.engine: vllm cannot lay an adapter over a base in 4 bit; leave the engine or quantization out",
        ),
        (
            {"policy.engine.options": '{"max_model_len": 64}'},
            "policy.engine.options: max_model_len would cut prompts that are trained on whole; leave it out",
        ),
        ({"policy.engine.environment": "nowhere"}, "policy.engine: there is no vllm in nowhere; make that environment"),
        ({"policy.rows": "8"}, "policy.rows"),
    ],
)
def test_what_does_not_go_together_gets_one_sentence(
    world: Path,
    tiny_policy_path: Path,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    sentence: str,
) -> None:
    with pytest.raises(InputError) as caught:
        run_here(monkeypatch, *words(tiny_policy_path, engine, **options))
    assert sentence in str(caught.value)
    assert not engine.pids and not (world / "out").exists()


def test_an_engine_of_several_processes_writes_the_rows_of_all(
    tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight processes, four to an engine: 100 answers are 50 for each of the two."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    renderer = Renderer(load_tokenizer(tiny_policy_path))
    processes: Any = SimpleNamespace(num_processes=8, device=torch.device("cpu"))

    def rows(size: int, **config: int) -> int | None:
        options = {"tensor_parallel_size": size}
        engine = EngineConfig(environment=FakeEngine(tmp_path / f"{size}{config}").folder, options=options)
        policy = PPOPolicy(checkpoint=tiny_policy_path, engine=engine)
        drawing = DrawingEngine(policy, PPOConfig(**config), tmp_path / "newest", processes, renderer)
        return drawing.sampler._source.rows

    assert (rows(4, batch_size=100), rows(4, batch_size=100, rows=8), rows(1, batch_size=100)) == (50, 32, 13)
    with pytest.raises(InputError, match=r"policy\.engine\.options: an engine over 3 GPUs is shared by as many"):
        rows(3)


def test_the_dry_run_counts_the_engine(
    world: Path,
    tiny_policy_path: Path,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hardware = {"dry_run.prompt_tokens": "32", "dry_run.mixed_precision": "no"}
    run_here(monkeypatch, *words(tiny_policy_path, engine, **SHARED, **hardware))
    said = capsys.readouterr().out
    assert "\n  engine  " in said and "\n  engine's cache  " in said and "It fits." in said
