"""One of each choice added from outside the package: the examples of docs/extend.md, written into an empty folder."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rlhf.annotation.labelling import label_batch
from rlhf.annotation.protocol import Pair
from rlhf.annotation.registry import make_annotator
from rlhf.annotation.store import Store
from rlhf.cli import main
from rlhf.configuration import parse_config
from rlhf.data.formats import FORMATS, register
from rlhf.data.loading import domain_of, load_conversations, load_prompts, untagged
from rlhf.data.rows import Completion
from rlhf.errors import InputError
from rlhf.imports import own_code
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig, VersionConfig
from rlhf.iteration.plan import make_plan
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.estimators import Answers, Tokens, find_estimator
from rlhf.ppo.experience import checked_estimates
from rlhf.rejection.selection import SelectionConfig, refuse_empty, select
from rlhf.rewards.loading import load_reward
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import PolicySource

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extend.md"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with the page's module in it; what it registers is gone afterwards."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_parts.py").write_text("\n\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    known = list(FORMATS)
    yield tmp_path
    sys.modules.pop("my_parts", None)
    for layout in [one for one in FORMATS if one not in known]:
        FORMATS.remove(layout)
    register(FORMATS.pop(0))  # forgets what was recognised by the removed ones


def completion(prompt: str, reward: float, text: str = "hello") -> Completion:
    return Completion(prompt, "v1", 0, text, (1,), 0.0, 1.0, True, reward, None, reward, "mine")


def test_a_reward() -> None:
    answer = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "1234567890"}]
    assert load_reward("my_parts:brevity")([answer]).tolist() == pytest.approx([-0.1])


def test_an_estimator_by_hand() -> None:
    """Three prompts, one answer each: the returns 3, 1 and -1 less their mean 1, for each answer's tokens."""
    config = PPOConfig(estimator="my_parts:BatchBaseline")
    assert not config.learns_value
    answers = Answers(scores=torch.tensor([[4.0], [1.0], [0.0]]), costs=torch.tensor([[1.0], [0.0], [1.0]]))
    mask = torch.tensor([[True, True], [True, False]])
    tokens = Tokens(torch.zeros(2, 2), mask, torch.tensor([2, 0]), None)
    advantages, returns = find_estimator(config.estimator).advantages(tokens, answers, config)
    assert advantages.tolist() == [[-2.0, -2.0], [2.0, 0.0]] and returns is None


def test_ppo_runs_with_an_estimator_of_ones_own(tiny_policy_path: Path, here: Path) -> None:
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i}"}]} for i in range(6)]
    (here / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "output": "out", "policy": tiny_policy_path, "helpfulness": "my_parts:brevity", "prompts": "prompts.jsonl",
        "validation_prompts": "prompts.jsonl", "sampling.max_new_tokens": 4, "ppo.iterations": 1,
        "ppo.batch_size": 6, "ppo.optimizer.batch_size": 3, "ppo.estimator": "my_parts:BatchBaseline",
    }  # fmt: skip
    recipe = importlib.import_module("recipes.ppo")
    recipe.main(parse_config(recipe.PPORecipeConfig, [w for n, v in given.items() for w in (f"--{n}", str(v))]))
    first = json.loads((here / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["skipped"] == 0 and first["grad_norm"] > 0
    assert "value_loss" not in first and "explained_variance" not in first


def test_a_selection_rule() -> None:
    rows = [completion(f"p{i}", reward) for i, reward in enumerate([0.1, 5.0, 0.2, 4.0, 0.3, 0.4])]
    rows += [completion("p1", 9.0, text="")]  # empty: no rule gets to see it
    chosen = select(rows, SelectionConfig(rule="my_parts:best_third"))
    assert [(row.prompt_id, row.reward) for row in chosen.chosen] == [("p1", 5.0), ("p3", 4.0)]
    assert chosen.left_out == Counter({"not in the best third": 4, "empty": 1})


def test_a_rule_gives_back_candidates(here: Path) -> None:
    (here / "my_parts.py").write_text("def twice(candidates, config, left_out):\n    return [*candidates[0]] * 2\n")
    with pytest.raises(InputError, match=r"selection.rule: my_parts:twice must give back some of its candidates"):
        select([completion("p", 1.0)], SelectionConfig(rule="my_parts:twice"))


def test_a_sampler(tiny_policy_path: Path) -> None:
    source = PolicySource(checkpoint=tiny_policy_path, backend="my_parts:Parrot")
    sampler = open_sampler(source, torch.device("cpu"))
    ((one, other),) = sampler.sample([[{"role": "user", "content": "hello you"}]], 2, SamplingParams())
    assert one.text == other.text == "hello you" and one.finished and one.token_ids


def test_a_layout(here: Path) -> None:
    row = {"ticket": "My river is dry.", "reply": "Ask the town.", "agent": "Mora"}
    (here / "tickets.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="row: not a conversation"):
        load_conversations("tickets.jsonl")
    dialogue = [{"role": "user", "content": "My river is dry."}, {"role": "assistant", "content": "Ask the town."}]
    assert load_conversations("tickets.jsonl#my_parts:TICKETS") == [dialogue]
    both = "tickets.jsonl#my_parts:TICKETS#safety"
    (prompt,) = load_prompts(both)
    assert prompt.messages == dialogue[:1] and prompt.domain == "safety"
    assert untagged(both) == "tickets.jsonl" and domain_of(both) == "safety"
    assert load_prompts("tickets.jsonl#safety#my_parts:TICKETS") == [prompt]
    (here / "others.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n')
    for load in (load_prompts, load_conversations):
        with pytest.raises(InputError, match=r"others.jsonl#my_parts:TICKETS: no row has the layout .*, which needs"):
            load("others.jsonl#my_parts:TICKETS")


def test_an_annotator() -> None:
    pair = Pair([{"role": "user", "content": "hi"}], "no", "hello there")
    (judgement,) = make_annotator("my_parts:Longer", {}).judge([pair])
    assert judgement.choice == "b" and judgement.annotator == "longer"


def test_a_step(here: Path, tiny_policy_path: Path) -> None:
    """The policy has twice its start's weights; half-way between the two lies one and a half times these."""
    text = PAGE.read_text(encoding="utf-8")
    recipe = text[text.rindex("```python\n") + len("```python\n") :].partition("```")[0]
    (here / "back.py").write_text(recipe, encoding="utf-8")
    shutil.copytree(tiny_policy_path, here / "policy")
    start = load_file(tiny_policy_path / "model.safetensors")
    save_file({n: 2 * tensor for n, tensor in start.items()}, here / "policy/model.safetensors", {"format": "pt"})
    back = importlib.import_module("back")
    arguments = ["--policy", "policy", "--start", str(tiny_policy_path), "--output", "out"]
    back.main(parse_config(back.BackConfig, arguments))
    made = load_file(here / "out/checkpoint/model.safetensors")
    assert made.keys() == start.keys() and all(torch.equal(made[n], 1.5 * start[n]) for n in start)
    assert json.loads((here / "out/stage.json").read_text())["inputs"].keys() == {"policy", "start"}

    (name,) = re.findall(r"here `(\w+\.yaml)` in the folder that `configs` names", text)
    (line,) = re.findall(r"with a line `(.*?)`", text)
    (here / "configs").mkdir()
    (here / "configs" / name).write_text(line)
    steps = yaml.safe_load(text[text.rindex("```yaml\n") + len("```yaml\n") :].partition("```")[0])["steps"]
    given = {"policy": "chat", "prompts": "p.jsonl", "test_prompts": "t.jsonl", "helpfulness": "a:b"}
    version = VersionConfig("v1", tuple(steps))
    plan = make_plan(IterativeConfig(Path("run"), Path("configs"), start=(), inputs=given, versions=(version,)))
    stage = next(stage for stage in plan if stage.name == "v1/back")
    overrides = stage.overrides
    assert (overrides["policy"], overrides["start"]) == ("run/v1/rejection_sampling/checkpoint", "chat")
    assert "seed" not in overrides
    assert check_plan([replace(stage, inputs=())])["v1/back"].share == 0.7


def test_a_panel(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here / "run"
    run.mkdir()
    versions = [{"name": "sft", "mean_length": 12.0}, {"name": "v1", "mean_length": 14.0}]
    (run / "summary.json").write_text(json.dumps({"versions": versions}))
    (run / "ledger.jsonl").write_text("")
    main(["report", str(run)])
    assert "How long answers are" not in (run / "report" / "index.html").read_text()
    main(["report", str(run), "--panel", "my_parts:length_by_version"])
    page = (run / "report" / "index.html").read_text()
    assert "Panels of your own" in page and page.count("How long answers are</h3>") == 1
    (run / "config.yaml").write_text("config: {panels: ['my_parts:length_by_version']}\n")
    main(["report", str(run), "--panel", "my_parts:length_by_version"])  # named twice, drawn once
    assert (run / "report" / "index.html").read_text().count("How long answers are</h3>") == 1
    with pytest.raises(SystemExit) as end:
        main(["report", str(run), "--panel", "my_parts:brevity"])
    assert end.value.code == 2 and "panels: my_parts:brevity fails" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PPOConfig(estimator="gea"), "estimator: must be one of gae, rloo, grpo, or package.module:attribute"),
        (lambda: PPOConfig(estimator="my_parts:best_third"), "estimator: my_parts:best_third is no estimator"),
        (lambda: PPOConfig(estimator="my_parts:none"), "estimator: my_parts:none cannot be imported"),
        (lambda: PPOConfig(estimator="rloo"), "estimator: rloo compares answers .* set samples_per_prompt to 2"),
        (
            lambda: SelectionConfig(rule="worst"),
            "selection.rule: must be one of best, random, longest, or package.module:attribute",
        ),
        (lambda: SelectionConfig(rule="my_parts:TICKETS"), "selection.rule: my_parts:TICKETS is a Format; name a func"),
        (lambda: load_prompts("x.jsonl#my_parts:brevity"), "my_parts:brevity: is a function; name a .*Format"),
        (lambda: IterativeConfig(Path("r"), Path("c"), panels=("my_parts:no",)), "panels: my_parts:no cannot be impor"),
    ],
)
def test_a_mistake_is_one_sentence(make, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


TOKENS = Tokens(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]), None)


def estimated(found: str) -> object:
    """What an estimator of one's own gives, where its method's body is this."""
    head = "class Mine:\n    needs_value, min_samples = False, 1\n    def advantages(self, tokens, answers, config):\n"
    Path("mine.py").write_text(f"{head}        {found}\n")
    answers = Answers(torch.zeros(1, 1), torch.zeros(1, 1))
    return checked_estimates(find_estimator("mine:Mine"), TOKENS, answers, PPOConfig(estimator="mine:Mine"))


def sampled(found: str, policy: Path) -> object:
    """What a backend of one's own draws, 2 answers to 2 prompts, where its method's body is this."""
    head = (
        "from rlhf.sampling.protocol import Sample\none = Sample('sure', (1,), 0.0, True)\nclass Mine:\n"
        "    def __init__(self, source, opening): ...\n    def sample(self, prompts, k, params, keys):\n"
    )
    Path("mine.py").write_text(f"{head}        {found}\n")
    sampler = open_sampler(PolicySource(checkpoint=policy, backend="mine:Mine"), torch.device("cpu"))
    return sampler.sample([[{"role": "user", "content": "hi"}]] * 2, 2, SamplingParams())


def read_by(layout: str) -> object:
    """A row as a layout of one's own reads it."""
    Path("mine.py").write_text(f"from rlhf.data.layouts.declaration import *\nMINE = Format('mine', {layout})\n")
    Path("rows.jsonl").write_text('{"ticket": "dry", "reply": "ask"}\n')
    return load_prompts("rows.jsonl#mine:MINE")


def scored(body: str) -> object:
    """The scores of one dialogue, by a function of one's own with this body."""
    Path("mine.py").write_text(f"def mine(conversations):\n    {body}\n")
    return load_reward("mine:mine")([[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]])


def judged(found: str) -> object:
    """What an annotator of one's own says of one pair."""
    Path("mine.py").write_text(
        "from rlhf.annotation.protocol import Judgement\n\n\nclass Mine:\n    name = 'mine'\n\n"
        f"    def judge(self, pairs):\n        for pair in pairs:\n            {found}\n"
    )
    with Store(Path("labels.sqlite")) as store, own_code("annotator", "mine:Mine"):
        store.add_batch("v1", [Pair([{"role": "user", "content": "hi"}], "yes", "no")], asked="mine")
        label_batch(store, "v1", make_annotator("mine:Mine", {}))
    return None


def kept(rule: str) -> object:
    """Of one answer what a rule of one's own keeps."""
    Path("mine.py").write_text(f"def mine(candidates, config, left_out):\n    {rule}\n")
    return refuse_empty(select([completion("p", 1.0)], SelectionConfig(rule="mine:mine")))


@pytest.mark.parametrize(
    ("make", "body", "says"),
    [
        (scored, "raise KeyError('x')", r"reward: mine:mine fails \(KeyError: 'x', .*mine.py:2\)"),
        (scored, "raise SystemExit", r"reward: mine:mine fails \(SystemExit: , .*mine.py:2\)"),
        (estimated, "return None", "estimator: mine:Mine must give two things, advantages and returns .* a NoneType"),
        (estimated, "return [0.0], None", r"estimator: mine:Mine must give .*shape, \(1, 2\), and of floats, got list"),
        (estimated, "return tokens.mask, None", r"and of floats, got \(1, 2\) of torch.bool"),
        (estimated, "return tokens.no", r"estimator: mine:Mine fails \(AttributeError: .*, .*mine.py:4\)"),
        (estimated, "return tokens.rewards / 0, None", "must give finite numbers, and 2 of 2 tokens' are NaN"),
        (judged, "raise KeyError('x')", r"annotator: mine:Mine fails \(KeyError: 'x', .*mine.py:9\)"),
        (
            judged,
            "yield Judgement(pair.id, 'mine', 'A')",
            r"annotator: mine:Mine fails \(InputError: choice: .*mine.py:9\)",
        ),
        (judged, "yield pair.id", "annotator: mine must yield rlhf.annotation.protocol.Judgement, got '"),
        (judged, "yield Judgement('x', 'mine', 'a')", r"mine gives a judgement that cannot be kept \(pair: batch 'v1'"),
        (kept, "return candidates[7]", r"selection.rule: mine:mine fails \(IndexError: .*, .*mine.py:2\)"),
        (kept, "pass", "selection.rule: mine:mine must give back some of its candidates"),
        (kept, "return []", r"no answer is left to train on \(the rule keeps none\)"),
        (sampled, "raise OSError('gone')", r"policy.backend: mine:Mine fails \(OSError: gone, .*mine.py:6\)"),
        (
            sampled,
            "return None",
            "policy.backend: mine:Mine must give a list for each of the 2 prompts, got a NoneType",
        ),
        (sampled, "return [[one] * 2]", "must give a list for each of the 2 prompts, got 1"),
        (sampled, "return [[one]] * 2", "must give 2 answers to each prompt, got 1"),
        (sampled, "return [one] * 2", "must give 2 answers to each prompt, got a Sample"),
        (sampled, "return [['yes', 'no']] * 2", "must give answers that are rlhf.sampling.protocol.Sample, got a str"),
        (read_by, "{'ticket'}, prompt=lambda row: 1 / 0", r"rows.jsonl:1: row: has the fields of mine, .*ZeroDivision"),
        (
            read_by,
            "{'ticket'}, when=lambda row: row['no']",
            r"rows.jsonl:1: row: the layout mine cannot say .*KeyError",
        ),
        (read_by, "{'ticket'}, prompt=lambda row: exit(0)", r"rows.jsonl:1: row: has the fields of mine, .*SystemExit"),
        (read_by, "['ticket']", r"needs: must be a set of field names, e.g. named\('ticket reply'\), got \['ticket'\]"),
    ],
)
def test_a_mistake_in_ones_own_code_is_one_sentence(
    make, body: str, says: str, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a traceback, whatever it raises or gives; with the line of the user's file where it raises."""
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=says):
        make(body, *([tiny_policy_path] if make is sampled else []))
