"""Options: what a mistake is answered with, and that reading them loads nothing heavy."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from rlhf.configuration import ConfigReader, parse_config, run_recipe
from rlhf.errors import InputError
from rlhf.stage import StageConfig

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Inner:
    """Inner options.

    Args:
        rate: a rate.
        kind: a kind.
    """

    rate: float = 0.1
    kind: Literal["plain", "fancy"] = "plain"


@dataclass(frozen=True)
class Seeded:
    """Draws.

    Args:
        seed: of the draws.
    """

    seed: int = 0


@dataclass(frozen=True)
class SeededGroup:
    """Draws in a group.

    Args:
        group: with a seed.
    """

    group: Seeded = field(default_factory=Seeded)


@dataclass(frozen=True)
class Outer:
    """Options.

    Args:
        data: some data.
        files: some files.
        names: some names.
        size: a size.
        inner: more options.
        extra: perhaps more options.
    """

    data: str
    files: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    size: int | None = None
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None


@dataclass(frozen=True)
class Loose:
    """Options of somebody's own.

    Args:
        options: anything.
    """

    options: dict[str, Any] = field(default_factory=dict)


MISTAKES = {
    "": "data: must be given",
    "--data": "data: needs a value",
    "--data a --sizes 3": "sizes: there is no such option; did you mean --size?",
    "--data a --rate 3": "rate: there is no such option; did you mean --inner.rate?",
    "--data a --inner.rat 3": "inner.rat: there is no such option; did you mean --inner.rate?",
    "--data.name a": "data.name: there is no such option; --data takes a text",
    "--data a --weight 3": "weight: there is no such option; --help lists them",
    "--data a b": "b: there is no such argument; --help lists them",
    "--data a --size big": "size: must be a whole number, got big",
    "--data a --inner.rate fast": "inner.rate: must be a number, got fast",
    "--data a --inner.rate .inf": "inner.rate: must be a finite number, got inf",
    "--data a --inner.rate .nan": "inner.rate: must be a finite number, got nan",
    f"--data a --size {'9' * 400}": f"size: must be below 2**63, got {'9' * 20}…, a number of 400 digits",
    "--data a --extra.rate=-.inf": "extra.rate: must be a finite number, got -inf",
    "--data a --inner.kind odd": "inner.kind: must be one of plain, fancy, got odd",
    "--data a --names b": "names: must be names with values, such as {name: value}, got b",
    "--data a --extra.rate fast": "extra.rate: must be a number, got fast",
    "--data a --extra.rat 1": "extra.rat: there is no such option; --help or --extra.help lists them",
    "--data a --extra 3": "extra: must be options with values, such as {name: value}, got 3",
    "--data a --inner no.yaml": "inner: there is no YAML file no.yaml; name one, or give its options one by one",
    '--data a --inner {"rate":"fast"}': "inner.rate: must be a number, got fast",
    '--data a --inner {"rate":2': 'inner: not valid YAML, got {"rate":2',
    "--data a --inner null": "inner: must not be null; leave it out for its default",
    "--data a --inner.rate null": "inner.rate: must be a number, got None",
    "--data a --config no.yaml": "config: no.yaml does not exist",
}


@pytest.mark.parametrize("words", [*MISTAKES, "--data b --inner.rate 0.2", "--data a --files x y --extra.rate 2"])
def test_after_others_alike_it_is_read_or_refused_as_alone(words: str) -> None:
    reader = ConfigReader()
    for before in ("--data a", "--data a --size 3 --files x", "--data a --inner.rate 0.5 --names.a b"):
        assert reader.read(Outer, before.split()) == parse_config(Outer, before.split())
    try:
        alone: object = parse_config(Outer, words.split())
    except InputError as error:
        with pytest.raises(InputError, match=f"^{re.escape(str(error))}$"):
            reader.read(Outer, words.split())
    else:
        assert reader.read(Outer, words.split()) == alone


FILES = {
    "data: a\nsise: 3\n": "sise: there is no such option; did you mean --size?",
    "data: a\ninner: {rat: 3}\n": "inner.rat: there is no such option; did you mean --inner.rate?",
    "data: a\nfiles: b\n": "files: must be a list such as [a, b], got b",
    "data: a\ninner: 3\n": "inner: must be options with values, such as {name: value}, got 3",
    "data: a\nextra: true\n": "extra: must be options with values, such as {name: value}, got True",
    'data: "a\\0b"\n': "data: holds a null character, which no path and no text has, got 'a\\x00b'",
    "data: a\ninner: {rate: .inf}\n": "inner.rate: must be a finite number, got inf",
    "data: a\nfiles: ~\n": "files: must not be null; leave it out for its default",
    "data: a\nnames: {a: !!set {b}}\n": "F:2: tags are not read, got !!set; write the value without it",
    "data: a\nsize: !!int x\n": "F:2: tags are not read, got !!int; write the value without it",
    "data: a\nnames: {no: b}\n": "F:2: a name must be a text, got no; put it into quotes",
    "data: a\nnames: &n {a: *n}\n": "F:2: an alias stands in what it stands for, which has no end; write out what is "
    "meant",
    "data: a\nnames: ''\n": "names: must be names with values, such as {name: value}, got ",
    "": "config: F holds no options; write a line such as `seed: 0` for each",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_a_mistake_on_the_command_line(options: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_config(Outer, options.split())
    assert str(raised.value) == MISTAKES[options]


@pytest.mark.parametrize("text", FILES)
def test_a_mistake_in_a_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        parse_config(Outer, ["--config", str(file)])
    assert str(raised.value) == FILES[text].replace("F", str(file))


@dataclass(frozen=True)
class Places:
    """Files of a recipe's.

    Args:
        output: a folder.
        policy: a model.
        data: some files.
    """

    output: Path
    policy: Path | None = None
    data: tuple[Path, ...] = ()


@pytest.mark.parametrize("words", [("output", ""), ("policy", ""), ("data", "['a', '']")])
def test_an_empty_path_is_not_the_working_folder(words: tuple[str, str]) -> None:
    name, value = words
    given = ["--output", "a", f"--{name}", value]
    for read in (partial(parse_config, Places), partial(ConfigReader().read, Places)):
        with pytest.raises(InputError, match=f"^{name}: must not be empty; name a file or folder, or leave it out$"):
            read(given)
    assert parse_config(Places, ["--output", "."]).output == Path(".")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data: ä\n".encode("utf-16"), "config: {} is not UTF-8 (invalid start byte at byte 0); save it so"),
        ("data: ä\n".encode("latin-1"), "config: {} is not UTF-8 (invalid continuation byte at byte 6); save it so"),
        (b"data: a\n\tsize: 3\n", "config: not valid YAML: while scanning a plain scalar in {}, line 1, column 7"),
        (b"data: [a\n", "config: not valid YAML: while parsing a flow sequence in {}, line 1, column 7"),
    ],
)
def test_a_file_that_is_no_yaml_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as raised:
        parse_config(Outer, ["--config", str(file)])
    assert str(raised.value).startswith(words.format(file))


def test_what_is_right_is_read(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("data: a\ninner: {rate: 2}\nextra: {kind: fancy}\n", encoding="utf-8")
    read = parse_config(Outer, ["--config", str(file), "--files", "[x, y]", "--size", "4", "--inner.kind", "fancy"])
    assert read == Outer("a", ("x", "y"), {}, 4, Inner(2.0, "fancy"), Inner(0.1, "fancy"))
    assert parse_config(Outer, ["--data", "a", "--files", "x", "y", "--size", "4"]).files == ("x", "y")
    assert parse_config(Outer, ["--data", "a", "--files", "x"]).files == ("x",)


def test_a_switch_without_a_value_is_a_yes() -> None:
    for words in (["--quiet"], ["--quiet", "--strict", "false"], ["--quiet", "true"]):
        read = parse_config(StageConfig, ["--output", "a", *words])
        assert (read.quiet, read.strict) == (True, False)
    assert parse_config(StageConfig, ["--strict", "--output", "a"]).strict


def test_the_help_of_no_recipe_loads_anything_heavy() -> None:
    """And a recipe's docstring keeps its lines, so that its command can be copied; each that has to do with a policy
    takes its template's variables."""
    code = """
import contextlib, io, runpy, sys
from pathlib import Path
for file in sorted(Path("recipes").rglob("*.py")):
    sys.argv = [str(file), "--help"]
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        runpy.run_path(str(file), run_name="__main__")
    assert f"{file} --" in said.getvalue(), file
    assert "--chat_template_kwargs" in said.getvalue() or file.stem == "refusal_detector", f"{file} reads a policy"
    heavy = {"torch", "transformers", "accelerate", "datasets", "matplotlib"} & set(sys.modules)
    assert not heavy, f"{file} --help loads {sorted(heavy)}"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", [-1, 2**31, 2**70])
def test_a_seed_that_no_generator_takes_is_refused_at_any_depth(seed: int) -> None:
    for config_class, option in ((Seeded, "seed"), (SeededGroup, "group.seed")):
        with pytest.raises(InputError, match=rf"^{option}: must be 0 or above and below 2147483648, got {seed}"[:70]):
            parse_config(config_class, [f"--{option}", str(seed)])
        parse_config(config_class, [f"--{option}", "2147483647"])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("{a: [!!set {b}]}", "options: tags are not read, got !!set; write the value without it"),
        ("{a: {b: !!binary aGk=}}", "options: tags are not read, got !!binary; write the value without it"),
        ("{a: {yes: b}}", "options: a name must be a text, got yes; put it into quotes"),
    ],
)
def test_a_value_of_no_plain_kind_is_refused_at_any_depth(given: str, sentence: str) -> None:
    with pytest.raises(InputError, match=rf"^{sentence}$"):
        parse_config(Loose, ["--options", given])
    assert parse_config(Loose, ["--options", "{a: [1, null, {b: 2024-01-01}]}"]).options == {
        "a": [1, None, {"b": "2024-01-01"}]
    }


def test_a_key_given_twice_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\n# again\nseed: 2\n")
    for words in (["--config", str(file)], [f"--config={file}"]):
        with pytest.raises(InputError, match=r"c.yaml:3: seed is given twice; leave one out"):
            parse_config(Seeded, words)
    for words in (["--group", str(file)], ["--group", "{seed: 1}", f"--group={file}"]):
        with pytest.raises(InputError, match=r"c.yaml:3: seed is given twice; leave one out"):
            parse_config(SeededGroup, words)
    with pytest.raises(InputError, match=r"^group: seed is given twice"):
        parse_config(SeededGroup, ["--group", "{seed: 1, seed: 2}"])
    file.write_text("group:\n  seed: 1\n  seed: 1\n")
    with pytest.raises(InputError, match=r"c.yaml:3: seed is given twice"):
        parse_config(SeededGroup, ["--config", str(file)])
    assert parse_config(Outer, ["--data", "{a: 1, a: 2}"]).data == "{a: 1, a: 2}", "a text is a text"


def test_aliases_that_grow_without_end_are_refused_before_they_grow(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    file.write_text("\n".join(lines))
    for words in (["--config", str(file)], ["--group", str(file)]):
        with pytest.raises(InputError, match=r"c.yaml: its aliases stand for more than 100000 values"):
            parse_config(SeededGroup, words)
    for option in ("group", "config"):
        with pytest.raises(InputError, match=rf"^{option}: its aliases stand for more than 100000 values"):
            parse_config(SeededGroup, [f"--{option}", file.read_text()])


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("x" * 300, "error: 'xxx.*: file name too long; give it a shorter name\n$"),
        ("afile/out", "error: 'afile/out.*: not a directory; a part of that path is a file; name another\n$"),
    ],
)
def test_a_path_that_cannot_be_is_one_sentence(
    output: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a recipe, and of the tools around a run."""
    from rlhf.cli import main as tool

    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    monkeypatch.syspath_prepend(str(next((ROOT / "recipes").rglob("simulated_world.py")).parent))
    recipe = importlib.import_module("simulated_world")
    monkeypatch.setattr(sys, "argv", ["simulated_world.py", "--output", output])
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.main, recipe.SimulatedWorldConfig)
    assert ended.value.code == 2 and re.match(sentence, capsys.readouterr().err)
    with pytest.raises(SystemExit) as ended:
        tool(["look", output])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
