"""The documentation names only what exists: functions, tests, files, options. And its example runs."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from rlhf.cli import make_parser
from rlhf.iteration.plan import find_recipe
from rlhf.sampling.source import PolicySource
from rlhf.shorthand import bare_field

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TOP_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
RECIPE_PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))


@cache
def definitions(file: Path) -> frozenset[str]:
    """Functions, classes, their methods and annotated fields, and assigned names of a Python file."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)
            if isinstance(node, ast.Assign):
                names.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))

    visit(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return frozenset(names)


def exists_in_package(dotted: str) -> bool:
    """Whether `rlhf.room.file[.Name[.member]]` is a module, or a name defined in one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        module, rest = ROOT.joinpath(*parts[:cut]), ".".join(parts[cut:])
        file = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__init__.py"
        if file.is_file():
            return not rest or rest in definitions(file)
    return False


@cache
def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_for_docs_{name}", find_recipe(name))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def options_of(config_class: type, prefix: str = "") -> Iterator[str]:
    """The options of a recipe with this config, fields of nested (also optional) dataclasses included."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield prefix + field.name
        for kind in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield from options_of(kind, f"{prefix}{field.name}.")


def named_options(text: str, name: str) -> set[str]:
    """Options of recipe `name` in a page: in prose, and on command lines after recipes/[folder/]<name>.py."""
    joined = text.replace("\\\n", " ")
    commands = [line for line in joined.splitlines() if ".py" in line and ("python " in line or "launch " in line)]
    prose = "\n".join(line for line in joined.splitlines() if line not in commands)
    prose = re.sub(r"`(?:make|accelerate|rlhf|python -m|pip|mkdocs)[^`]*`", "", prose)
    script = re.compile(rf"recipes/(?:\w+/)?{name}\.py")
    after = "\n".join(script.split(line, maxsplit=1)[1] for line in commands if script.search(line))
    return set(re.findall(r"(?<![\w-])--([a-z][\w.]*)", prose + after)) - {"help", "config"}


def test_there_is_a_page_for_every_recipe() -> None:
    assert {page.stem for page in RECIPE_PAGES} == {file.stem for file in (ROOT / "recipes").rglob("*.py")}


def test_the_readme_names_every_recipe() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\[(\w+)\]\(recipes/(?:\w+/)?\1\.py\)", text)) == {page.stem for page in RECIPE_PAGES}


@pytest.mark.parametrize("page", RECIPE_PAGES, ids=lambda page: page.stem)
def test_options_on_a_recipe_s_page_exist(page: Path) -> None:
    config_class = typing.get_type_hints(recipe(page.stem).main)["config"]
    options = set(options_of(config_class))
    named = named_options(page.read_text(encoding="utf-8"), page.stem)
    assert named, "the page should name the options that matter"
    assert named <= options, f"not in the recipe's --help: {sorted(named - options)}"


@pytest.mark.parametrize("page", RECIPE_PAGES, ids=lambda page: page.stem)
def test_defaults_on_a_recipe_s_page_are_the_code_s(page: Path) -> None:
    """Rows of the options tables: | `--name` | default | what |."""
    config_class = typing.get_type_hints(recipe(page.stem).main)["config"]
    text = page.read_text(encoding="utf-8")
    for name, default in re.findall(r"^\| `--([\w.]+)` \| ([^|]*) \| [^|]*\|$", text, re.MULTILINE):
        value: object = config_class
        parts = name.split(".")
        for number, part in enumerate(parts, start=1):
            value = default_of(value, part, deeper=number < len(parts))
        value = None if isinstance(value, type) else value  # an optional group of options as a whole
        written = default.strip().strip("`")
        expected = "required" if value is dataclasses.MISSING else "none" if value in (None, ()) else str(value)
        assert written == expected, f"{page.name}: --{name} is {expected} in the code, {written} on the page"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RECIPE_PAGES], ids=lambda page: page.stem)
def test_a_recipe_s_options_on_other_pages_exist(page: Path) -> None:
    """Written `recipe --option`."""
    named = re.findall(r"`(\w+) --([a-z][\w.]*)", page.read_text(encoding="utf-8"))
    recipes = {page.stem for page in RECIPE_PAGES}
    unknown = [
        f"{name} --{option}"
        for name, option in named
        if name in recipes and option not in set(options_of(typing.get_type_hints(recipe(name).main)["config"]))
    ]
    assert not unknown


def default_of(holder: object, field_name: str, deeper: bool = False) -> object:
    """Default of a dataclass's field, or its value in an instance (a nested default); MISSING where it is required."""
    if not isinstance(holder, type):
        found: object = getattr(holder, field_name)
        return default_of(type(holder), field_name, deeper) if found is None else found
    field = next(f for f in dataclasses.fields(holder) if f.name == field_name)  # type: ignore[arg-type]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    hint = typing.get_type_hints(holder)[field_name]
    if field.default is dataclasses.MISSING and bare_field(hint) is not None and not deeper:
        return dataclasses.MISSING  # a required group that a bare text stands for
    if field.default is None or dataclasses.is_dataclass(hint):  # optional or required: what its fields are once given
        nested = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
        return nested[0] if nested else None
    return field.default


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_and_files_on_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    dotted = set(re.findall(r"(?:`|^::: )(rlhf(?:\.\w+)+)(?:`|$)", text, re.MULTILINE))
    assert not [name for name in sorted(dotted) if not exists_in_package(name)]
    files = set(re.findall(r"\b(?:rlhf|recipes|tests|ds_configs)/[\w/]+\.(?:py|yaml|json)", text)) - {"recipes/X.py"}
    assert not [file for file in sorted(files) if not (ROOT / file).is_file()]
    tests = re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)
    assert not [f"{file}::{name}" for file, name in tests if name not in definitions(ROOT / file)]


def test_a_recipe_whose_policies_answer_has_the_one_option_for_what_is_too_long() -> None:
    """Eight had none: what did not fit was cut, and stderr said so."""
    ask_nothing = {"dpo", "leaderboard", "simple_text_data"}  # probabilities of rows; questions about single passages
    lack = []
    for page in RECIPE_PAGES:
        config_class = typing.get_type_hints(recipe(page.stem).main)["config"]
        hints = typing.get_type_hints(config_class)
        asks = any(PolicySource in (hint, *typing.get_args(hint)) for hint in hints.values())
        asks |= page.stem in ("evaluate_rewards", "gate_sweep")  # rewards alone read there
        on_page = "| `--too_long` | cut |" in page.read_text(encoding="utf-8")
        if asks and page.stem not in ask_nothing and not ("too_long" in hints and on_page):
            lack.append(page.stem)
    assert not lack


@pytest.mark.parametrize("page", [*PAGES, *TOP_PAGES], ids=lambda page: page.stem)
def test_links_and_pictures_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"", text)
    local = [target for pair in targets for target in pair if target and not re.match(r"https?:|mailto:", target)]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", [*PAGES, *TOP_PAGES], ids=lambda page: page.stem)
def test_commands_of_rlhf_on_a_page_exist(page: Path) -> None:
    """`rlhf look FILE --rows 3`: the command and its options, in code blocks and in the text."""
    assert not list(unknown_commands(page.read_text(encoding="utf-8")))


def unknown_commands(text: str) -> Iterator[str]:
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    code += re.findall(r"(?:^    [^\n]*\n)+", text, re.MULTILINE)
    lines = "\n".join(code).replace("\\\n", " ").splitlines()
    options = options_of_commands()
    for line in lines:
        for words in re.findall(r"^(?:\s*|.*[$&;(]\s*)rlhf ([a-z][\w-]*[^#|;)]*)", line):
            name, *more = words.split()
            driver = name in ("plan", "run") or words.startswith("recipe run")
            named = {word.split("=")[0] for word in more if re.match(r"--[a-z]", word)}
            if name not in options or (not driver and not named <= options[name]):
                yield line


@cache
def options_of_commands() -> dict[str, set[str]]:
    """Command of `rlhf` -> its options and those of its own commands."""

    def named(parser: argparse.ArgumentParser) -> set[str]:
        under = [p for action in parser._actions for p in _choices(action).values()]
        return set(parser._option_string_actions).union(*map(named, under))

    parser = make_parser()
    return {name: named(p) for action in parser._actions for name, p in _choices(action).items()}


def _choices(action: argparse.Action) -> Mapping[str, argparse.ArgumentParser]:
    return action.choices if isinstance(action, argparse._SubParsersAction) else {}


def test_every_objective_is_on_the_paper_page() -> None:
    text = (ROOT / "docs" / "from_paper_to_code.md").read_text(encoding="utf-8")
    helpers = {"require_same_shape", "expected_order_statistic", "clipped_share"}
    for file in sorted((ROOT / "rlhf" / "objectives").glob("*.py")):
        for name in definitions(file) - helpers:
            if name.islower() and not name.startswith("_") and "." not in name:
                assert f"`rlhf.objectives.{file.stem}.{name}`" in text


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [p for p in PAGES if f" {p.relative_to(ROOT / 'docs').as_posix()}" not in navigation]


def test_the_checks_would_notice() -> None:
    assert exists_in_package("rlhf.objectives.ranking.ranking_loss") and exists_in_package("rlhf.stage")
    assert not exists_in_package("rlhf.objectives.ranking.ranking_los") and not exists_in_package("nothing.here")
    text = (
        "`--seed 1` `--sampling.top_p`\n\n  accelerate launch --num_machines 1 recipes/sft.py --config F \\\n --data x"
    )
    assert named_options(text, "sft") == {"seed", "sampling.top_p", "data"}
    assert list(
        unknown_commands("`rlhf lok F`, `rlhf report F --serve` and\n```\nrlhf look F \\\n  --no_such 1\n```\n")
    ) == [
        "rlhf look F    --no_such 1",
        "rlhf lok F",
    ]


def test_the_example_reward_runs_where_a_reward_model_goes() -> None:
    from rlhf.rewards.gate import GatedReward
    from rlhf.rewards.loading import load_reward

    brevity = load_reward("rlhf.rewards.examples:Brevity")
    answers = ["It is Mora.", " ".join(["word"] * 15)]
    conversations = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": a}] for a in answers]
    rewards = GatedReward(brevity, safety=lambda c: 0 * brevity(c))(conversations, ["helpfulness"] * 2)
    assert rewards.reward.tolist() == [0.0, -0.5]
    assert rewards.used_safety.tolist() == [False, False]


def test_the_world_page_s_verdicts_are_the_gold_scorer_s() -> None:
    from rlhf.simulation.gold import GoldScorer
    from rlhf.simulation.world import World, WorldConfig

    gold = GoldScorer(World.make(WorldConfig(seed=0)))
    text = (ROOT / "docs" / "simulated_world.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 8
    for question, answer, helpfulness, safety in rows:
        verdict = gold.judge([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
        assert f"{verdict.helpfulness:.2f} {verdict.safety:.2f}" == f"{helpfulness} {safety}", answer


def test_the_world_page_s_examples_are_asked_in_the_world() -> None:
    from rlhf.simulation.grammar import Grammar
    from rlhf.simulation.words import TOWNS
    from rlhf.simulation.world import World, WorldConfig

    grammar = Grammar(World.make(WorldConfig(towns=len(TOWNS), dated_towns=len(TOWNS))))
    text = (ROOT / "docs" / "simulated_world.md").read_text(encoding="utf-8")
    table = text.split("| what is asked | examples |", 1)[1].split("\n\n", 1)[0]
    examples = [example.strip() for row in table.splitlines()[2:] for example in row.split("|")[2].split("·")]
    assert len(examples) > 15
    for example in examples:
        question, instructions, _ = grammar.read(example)
        assert question is not None or instructions, f"nobody asks {example!r}"
