"""What jsonargparse says of a user's mistake, in one sentence that names the option, the value and the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list such as [a, b]",
    "dict": "names with values, such as {name: value}",
}


def sentence_of(error: str, options: Iterable[str], file: str | None = None) -> str:
    """The sentence for jsonargparse's message.

    Args:
        error: its message, white space reduced to single spaces.
        options: names of all options, without dashes, for a guess at what was meant.
        file: the YAML file that was read, where there is one.
    """
    unknown = re.match(
        r"unrecognized arguments: (.*)|Option '(.*)' is not accepted|Group '(.*)' does not accept option '(.*)'", error
    )
    if unknown:
        given = unknown[1] or unknown[2] or f"{unknown[3]}.{unknown[4]}"
        name = given.lstrip("-").split("=")[0].split(" ")[0]
        kind = "option" if given.startswith("-") or not unknown[1] else "argument"
        return f"{name}: there is no such {kind}; {_guess(name, list(options))}"
    if missing := re.match(r"the following arguments are required: (.*)", error):
        return f"{missing[1]}: must be given"
    if found := re.match(r"argument --(\S+): expected one argument", error):
        return f"{found[1]}: needs a value"
    if found := re.match(r"Parser key \"config\": File does not exist: '?(.*?)'?$", error):
        return f"config: {file or found[1]} does not exist"
    if error.startswith("Unexpected config:"):
        return f"config: {file} holds no options; write a line such as `seed: 0` for each"
    if found := re.match(r"Problems parsing config: (.*)", error):
        return f"config: not valid YAML: {found[1]}; mend it there"
    return _of_key("", error, "") or _of_any_key(error) or error


def _of_any_key(error: str) -> str:
    """Of a message that is not known, what it says of: the option's name and the value."""
    keys = dict.fromkeys(re.findall(r'Parser key "([^"]+)"', error))
    value = re.search(r"Given value: (.*?)(?: - |$)", error)
    if keys:
        return f"{'.'.join(keys)}: cannot be{f' {value[1]}' if value else ' this'}; --help says what it takes"
    if value and (empty := re.findall(r"(\w+)=None", value[1])):  # of a group of options
        return f"{' or '.join(empty)}: must be given, null is none; --help says what it takes"
    return ""


def _of_key(key: str, error: str, value: str) -> str:
    """The sentence for the value of an option, looked for through the groups and alternatives of types it stands in."""
    if found := re.match(r'Parser key "([^"]+)": (.*)', error):
        return _of_key(f"{key}.{found[1]}".lstrip("."), found[2], value)
    if found := re.match(r"Does not validate .*? Errors: - (.*) Given value type: .*? Given value: ?(.*)$", error):
        parts = [part for part in found[1].split(" - ") if "NoneType" not in part]
        if all(part.startswith("Expected a ") for part in parts):  # no group: one of a list's values says most
            parts = [part for part in parts if ". Got value: " in part][:1] or parts
        return _of_key(key, " - ".join(parts), found[2])
    if found := re.match(r"Problem with given class_path[^:]*: (.*)", error):
        inner = found[1]
        if option := re.match(r"Option '(.*?)' is not accepted", inner):
            return f"{key}.{option[1]}: there is no such option; --help or --{key}.help lists them"
        if missing := re.match(r"the following arguments are required: (.*)", inner):
            return ", ".join(f"{key}.{name}" for name in missing[1].split(", ")) + ": must be given"
        return _of_key(key, inner, value)
    if found := re.match(r"Not of type Path: (.*?)(?: - |$)", error):
        return f"{key}: {found[1]}"
    no_class = (
        r"Not a valid subclass|(?:Expected a dot import path string:|Unexpected import path format:|Import path) (\S*)"
    )
    if found := re.match(no_class, error):
        if inner := re.match(r"NestedArg\(key='(.*?)', val=(.*)\)$", value):  # of one of the group's options
            key, value = f"{key}.{inner[1]}", inner[2]
        return f"{key}: must be options with values, such as {{name: value}}, got {value or found[1]}"
    if found := re.match(r"Unable to load config '(.*?)'(?: - (.*))?$", error):
        if re.match(rf'Parser key "{re.escape(key)}\.', found[2] or ""):  # it is one, and an option in it is wrong
            return _of_key("", found[2], value)
        if found[1] == "null":
            return f"{key}: must not be null; leave it out for its default"
        if found[1].startswith("{"):
            return f"{key}: not valid YAML, got {found[1]}"
        return f"{key}: there is no YAML file {found[1]}; name one, or give its options one by one"
    if found := re.match(r"Expected a (.*?)\. Got value: ?(.*)$", error) or re.match(r"Expected a (.*)()$", error):
        kinds = [_kind(kind) for kind in found[1].split(" - Expected a ")]
        got = found[2] or value
        if inner := re.match(r"NestedArg\(key='(.*?)'", got):  # an option of an option that has none
            return f"{key}.{inner[1]}: there is no such option; --{key} takes {' or '.join(kinds)}"
        return f"{key}: must be {' or '.join(kinds)}, got {got}"
    return ""


def _kind(text: str) -> str:
    if choices := re.match(r"typing.Literal\[(.*)\]", text):
        return "one of " + choices[1].replace("'", "")
    name = re.sub(r"<class '(.*)'>", r"\1", text)
    return _KINDS.get(name, f"a {name}")


def _guess(name: str, options: list[str]) -> str:
    """The options that end as `name` does, else those that are written alike."""
    last = name.split(".")[-1]
    near = [option for option in options if option.split(".")[-1] == last]
    near = near or difflib.get_close_matches(name, options, n=1, cutoff=0.75)
    if not near:
        lasts = difflib.get_close_matches(last, [option.split(".")[-1] for option in options], n=1, cutoff=0.75)
        near = [option for option in options if option.split(".")[-1] in lasts]
    return "did you mean " + " or ".join(f"--{option}" for option in near) + "?" if near else "--help lists them"
