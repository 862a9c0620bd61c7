"""The house: rooms on floors import downwards alone, no import goes in a circle, the driver needs no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (  # rooms of one floor know nothing of each other
    "terminal",
    "errors intervals lifetime",
    "architecture conversation http_client imports jsonl launch metrics objectives option_errors paths shipped "
    "shorthand strict_yaml",
    "configuration",
    "data stage",
    "iteration training",
    "models",
    "rewards sampling",
    "finetuning ppo rejection synthesis",
    "annotation evaluation",
    "report simulation studies",
    "start",
    "commands",
    "cli",
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor.split()}
MOST_FILES = 16
LONGEST_MAIN = 50
HEAVY = {"accelerate", "matplotlib", "peft", "torch", "transformers"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package and of the recipes."""
    files = [file for top in ("rlhf", "recipes") for file in sorted((ROOT / top).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@cache
def imports() -> dict[str, frozenset[str]]:
    """Module -> the modules it imports: at its top, within its functions, and for its annotations alone."""
    return {name: frozenset(imported(file)) - {name} for name, file in modules().items()}


@cache
def statements(file: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """All import statements of a file, however deep."""
    found: list[ast.Import | ast.ImportFrom] = []
    left: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        for part in ("body", "orelse", "handlers", "finalbody", "cases"):
            inner = getattr(node, part, ())
            left += inner if isinstance(inner, list) else ()  # not that of a lambda, of x if y else z
    return tuple(found)


def imported(file: Path) -> Iterator[str]:
    for node in statements(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif node.module is not None:
            for alias in node.names:
                within = f"{node.module}.{alias.name}"
                if within in modules() or node.module in modules():
                    yield within if within in modules() else node.module


def circles(graph: Mapping[str, frozenset[str]]) -> list[str]:
    """Names from which a way leads back to them."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        left = [start]
        while left:
            new = graph.get(left.pop(), frozenset()) - found
            found |= new
            left += new
        return found

    return [name for name in graph if name in reached(name)]


@cache
def defined(module: str) -> frozenset[str]:
    """What a module has at its top: classes, functions, values, and what it imports itself."""
    found: set[str] = set()
    left: list[ast.AST] = list(ast.parse(modules()[module].read_text(encoding="utf-8")).body)
    while left:
        node = left.pop()
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        else:
            left += ast.iter_child_nodes(node)
    return frozenset(found)


def source_of(node: ast.Import | ast.ImportFrom) -> str:
    return (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name


@cache
def loaded(module: str) -> frozenset[str]:
    """Packages from outside that come with a module: what it, and all of ours behind it, import at their tops."""
    found: set[str] = set()
    known: set[str] = set()
    left = {module}
    while left:
        name = left.pop()
        known.add(name)
        if name not in modules():
            found.add(name.partition(".")[0])
            continue
        for node in ast.parse(modules()[name].read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                within = {f"{source_of(node)}.{alias.name}" for alias in node.names} & modules().keys()
                left |= {source_of(node), *within} - known
    return frozenset(found)


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_room_stands_on_a_floor() -> None:
    assert {room_of(name) for name in modules() if name.startswith("rlhf.")} == set(FLOOR)


def test_contributors_are_shown_the_same_floors() -> None:
    shown = re.findall(r"^ {4,5}(\d+)  (.+)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [(int(number), rooms.split()) for number, rooms in reversed(shown)] == [
        (number, floor.split()) for number, floor in enumerate(FLOORS, start=1)
    ]


def test_rooms_import_downwards_alone() -> None:
    climbing = [
        f"{name} imports {other}"
        for name, others in imports().items()
        if name.startswith("rlhf.")
        for other in others
        if other.startswith("recipes.")
        or (room_of(other) != room_of(name) and FLOOR[room_of(other)] >= FLOOR[room_of(name)])
    ]
    assert not climbing


def test_a_recipe_imports_no_other() -> None:
    recipes = {name: others for name, others in imports().items() if name.startswith("recipes.")}
    assert not [f"{name} imports {o}" for name, others in recipes.items() for o in others if o.startswith("recipes.")]


def test_a_recipe_s_main_tells_a_story() -> None:
    """In few lines; what all of them must do, a barrier for one, is the stage's, and it imports at the recipe's top."""
    texts = {name: file.read_text(encoding="utf-8") for name, file in modules().items() if name.startswith("recipes.")}
    assert not [name for name, text in texts.items() if "wait_for_everyone" in text]
    mains = {
        name: node
        for name, text in texts.items()
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    }
    assert len(mains) > 30
    lines = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in mains.items()}
    assert not {name: count for name, count in lines.items() if count > LONGEST_MAIN}
    late = (ast.Import, ast.ImportFrom)
    assert not [name for name, node in mains.items() if any(isinstance(part, late) for part in ast.walk(node))]


def test_a_recipe_imports_at_its_top_what_is_light() -> None:
    """Within a function, or for annotations alone, stands only what loads torch or the like."""
    late = [
        f"{name}: {module}"
        for name, file in modules().items()
        if name.startswith("recipes")
        for node in statements(file)
        if node.col_offset and (module := source_of(node)) and not HEAVY & loaded(module)
    ]
    assert not late, f"import at the top: {late}"
    assert "torch" in loaded("rlhf.finetuning.dpo") and not HEAVY & loaded("rlhf.finetuning.stage")


def test_no_import_goes_in_a_circle() -> None:
    """Between modules, and between the rooms within a room."""
    assert not circles(imports())
    within: dict[str, set[str]] = {}
    for name, others in imports().items():
        mine = name.split(".")[1:3]
        for other in others:
            theirs = other.split(".")[1:3]
            if len(mine) == len(theirs) == 2 and mine[0] == theirs[0] and mine[1] != theirs[1]:
                within.setdefault(".".join(mine), set()).add(".".join(theirs))
    assert not circles({name: frozenset(others) for name, others in within.items()})


def test_whatever_is_imported_of_the_package_exists() -> None:
    """Also late, in benchmarks that no test runs, and in tests that are skipped here."""
    tops = ("rlhf", "recipes", "benchmarks", "examples", "tests")
    missing = [
        f"{file}: {node.module}.{alias.name}"
        for file in (file for top in tops for file in (ROOT / top).rglob("*.py"))
        for node in statements(file)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rlhf"
        for alias in node.names
        if f"{node.module}.{alias.name}" not in modules()
        and (node.module not in modules() or alias.name not in defined(str(node.module)))
    ]
    assert not missing


def test_no_folder_is_crowded() -> None:
    folders = {file.parent for file in [*modules().values(), *(ROOT / "tests").rglob("*.py")]}
    code = {folder: [file for file in folder.glob("*.py") if file.name != "__init__.py"] for folder in folders}
    assert not {str(folder): len(files) for folder, files in code.items() if len(files) > MOST_FILES}


def test_the_driver_needs_no_torch() -> None:
    names = [name for name in modules() if name.startswith("rlhf.iteration")]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "source",
    [
        "from rlhf.stage import open_stage",
        "def f():\n    try:\n        from rlhf.stage.fields import Effect\n    finally:\n        pass",
        "from rlhf import stage",
        "import rlhf.stage",
    ],
)
def test_the_checks_would_notice(source: str, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(source, encoding="utf-8")
    found = list(imported(tmp_path / "file.py"))
    assert found and all(name.startswith("rlhf.stage") for name in found)
    assert circles({"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"b"})}) == ["b", "c"]
