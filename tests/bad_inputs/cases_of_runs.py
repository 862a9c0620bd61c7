"""Ledgers, summaries, plans and names of runs; disks, folders, clocks and keyboards around them."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from case import Case
from world import call

NOW = time.time()
EVENT = {"event": "started", "time": NOW, "stage": "sft"}
LEDGERS: dict[str, str | bytes] = {
    "empty": "",
    "numbers": "3\n",
    "lists": "[]\n",
    "texts": '"x"\n',
    "nulls": "null\nnull\n",
    "bytes": bytes(range(256)),
    "a line cut off in the middle": '{"event": \n' + json.dumps(EVENT) + "\n",
    "an event that is a number": '{"event": 1, "time": 1}\n',
    "no time": '{"event": "begun"}\n',
    "a time that is a text": '{"event": "begun", "time": "now"}\n',
    "a time without end": '{"event": "begun", "time": Infinity}\n{"event": "ended", "time": NaN}\n',
    "a time that is true": '{"event": "begun", "time": true}\n',
    "a stage that is a number": json.dumps({**EVENT, "stage": 3}) + "\n",
    "a stage that is a list": json.dumps({**EVENT, "stage": ["sft"]}) + "\n",
    "a finished stage without files": json.dumps({**EVENT, "event": "finished"}) + "\n",
    "files that are a list": json.dumps({**EVENT, "event": "finished", "files": ["a"], "seconds": 1}) + "\n",
    "seconds that are text": json.dumps({**EVENT, "event": "finished", "files": {}, "seconds": "long"}) + "\n",
    "seconds below 0": json.dumps({**EVENT, "event": "finished", "files": {}, "seconds": -5, "key": {}}) + "\n",
    "a key that is a text": json.dumps({**EVENT, "event": "finished", "files": {}, "seconds": 1, "key": "x"}) + "\n",
    "removed without names": json.dumps({**EVENT, "event": "removed"}) + "\n",
    "removed names that are numbers": json.dumps({**EVENT, "event": "removed", "names": 3, "bytes": "x"}) + "\n",
    "an unknown event": json.dumps({**EVENT, "event": "danced"}) + "\n",
    "a stage that leads out": json.dumps({**EVENT, "event": "finished", "stage": "../../etc", "files": {}}) + "\n",
    "deep": '{"event": ' + "[" * 5000 + "]" * 5000 + "}\n",
    "digits": '{"event": "begun", "time": ' + "9" * 6000 + "}\n",
    "a clock set back": "".join(
        json.dumps({"event": e, "time": NOW + t, **m}) + "\n"
        for e, t, m in (
            ("begun", 0, {"stages": 2}),
            ("started", 10, {"stage": "sft"}),
            ("finished", -3_452_400, {"stage": "sft", "seconds": 9.0, "files": {}}),
            ("begun", -3_452_000, {"stages": 2}),
            ("ended", 20, {"finished": 1, "stages": 2}),
        )
    ),
    "a clock of the next century": json.dumps({"event": "begun", "time": 1e12}) + "\n" + json.dumps(EVENT) + "\n",
}
SUMMARIES: dict[str, str | bytes] = {
    "empty": "",
    "a list": "[]",
    "no versions": "{}",
    "versions of numbers": '{"versions": [1]}',
    "a version without name": '{"versions": [{}]}',
    "a name that is an object": '{"versions": [{"name": {}}]}',
    "figures that are texts": '{"versions": [{"name": "v1", "mean_length": "long"}]}',
    "seconds that are text": '{"versions": [{"name": "v1"}], "seconds": "x", "reward_models": []}',
    "reward models that are numbers": '{"versions": [{"name": "v1"}], "seconds": 1, "reward_models": [1]}',
    "reward models that are text": '{"versions": [{"name": "v1"}], "seconds": 1, "reward_models": "x"}',
    "a reward model of nothing": '{"versions": [{"name": "v1"}], "seconds": 1, "reward_models": [{}]}',
    "suspicious that is a list": '{"versions": [{"name": "v1"}], "seconds": 1, "reward_models": [], "suspicious": [1]}',
    "a referee that is text": '{"versions": [{"name": "v1"}], "seconds": 1, "reward_models": [], "referee": "x"}',
    "intervals of text": '{"versions": [{"name": "v1", "mean_length": 1, "intervals": "x"}], "seconds": 1}',
    "NaN": '{"versions": [{"name": "v1", "mean_length": NaN, "referee_score": Infinity}], "seconds": NaN}',
    "bytes": bytes(range(256)),
    "cut off": '{"versions": [',
    "deep": '{"versions": ' + "[" * 5000 + "]" * 5000 + "}",
}
STAGE_FILES = {
    "v1/evaluation/evaluation.json": ("[]", "{}", "", '{"name": 3}', '{"name": "v1", "by_domain": 3}'),
    "v1/evaluation/answers.jsonl": ("[]\n", "{}\n", "", "3\n", '{"id": 1}\n'),
    "v1/rejection_sampling/selection.json": ("[]", "{}", "", '{"curve": 3}'),
    "v1/helpfulness_reward/accuracy.json": ("[]", "{}", "", '{"accuracy": "high"}'),
    "v3/ppo/ppo.json": ("[]", "{}", ""),
    "v3/ppo/metrics.jsonl": ("[]\n", "3\n", '{"step": "x"}\n', "\x00"),
    "config.yaml": ("[]", "config: 3\n", "config: {versions: 3}\n", "", "{", "config: {run: [], seed: x}\n"),
}
NAMES = (
    "pool",
    "ledger.jsonl",
    "summary.json",
    "config.yaml",
    "plan.yaml",
    "report",
    ".lock",
    "..",
    "a/b",
    "start",
    "sft",
    "labels.sqlite",
    "v1.partial",
    "chat_model",
    "settings",
    "logs",
    "CON",
    "x" * 300,
    " ",
    "",
    "$x^2$",
    "sft_evaluation",
)
FREE = "a name that nothing in this plan's folder has"
TAKEN = {
    "CON": "a folder's name as any other on Linux",
    **dict.fromkeys(("start", "sft", "settings", "sft_evaluation"), FREE),
}
DOLLARS = ("$", "$x", "$x^2$", "\\frac{", "$\\frac{$", "_^{}", "<b>", "{version}", "%s", "a\nb", "\x1b[31m")


def cases() -> Iterator[Case]:
    """All of this file."""
    for name, text in LEDGERS.items():
        for words in (("rlhf", "report", "run"), ("rlhf", "verify", "run"), _plan("plan"), _plan("run")):
            yield Case(
                "ledgers",
                f"{words[1]}: {name}",
                words,
                _puts("run/ledger.jsonl", text),
                "an event that says little says nothing",
            )
    for name, text in SUMMARIES.items():
        for words in (("rlhf", "report", "run"), ("rlhf", "compare", "run", "run"), ("rlhf", "verify", "run")):
            yield Case(
                "summaries", f"{words[1]}: {name}", words, _puts("run/summary.json", text), "the page has what there is"
            )
    for file, texts in STAGE_FILES.items():
        for text in texts:
            yield Case(
                "figures of stages",
                f"report: {file} {text.strip()[:12]!r}",
                ("rlhf", "report", "run"),
                _puts(f"run/{file}", text),
                "the page has what there is",
            )
            if file != "config.yaml":
                folder = str(Path("run") / Path(file).parent)
                yield Case(
                    "figures of stages",
                    f"report of it: {file} {text.strip()[:12]!r}",
                    ("rlhf", "report", folder),
                    _puts(f"run/{file}", text),
                    "the page has what there is",
                )
    for name in NAMES:
        shown = ascii(name[:16])
        named = f"[{json.dumps(name)}]"
        yield Case("names of versions", f"plan: {shown}", _plan("plan", named, ""), _puts("x", ""), TAKEN.get(name, ""))
        yield Case(
            "names of versions",
            f"run: {shown}",
            _plan("run", f"[{json.dumps(name)}]", ""),
            _puts("x", ""),
            first=_no_stage,
        )
    for name in DOLLARS:
        shown = ascii(name)
        yield Case(
            "signs in names",
            f"report: {shown}",
            ("rlhf", "report", "run"),
            _renames("v1", name),
            "a name is a text, whatever is in it",
        )
        yield Case(
            "signs in names",
            f"evaluate: {shown}",
            call("evaluate", name=name),
            None,
            "a name is a text, whatever is in it",
        )
        yield Case(
            "signs in names",
            f"evaluate_rewards: {shown}",
            call("evaluate_rewards", rewards=json.dumps({name: "reward", "two": "mine:good"})),
            None,
            "a name is a text, whatever is in it",
        )
        yield Case(
            "signs in names",
            f"temperature_sweep: {shown}",
            call("temperature_sweep", groups=json.dumps({name: ["made up"]})),
            None,
            "a name is a text, whatever is in it",
        )
    for code in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO):
        yield from _full(code)
    for words in (_plan("run"), ("rlhf", "report", "run"), ("rlhf", "verify", "run"), ("rlhf", "plan", "run")):
        yield Case(
            "read-only folders", f"{words[1]}", words, _closes("run"), "reading needs no writing", obeys_modes=True
        )
    yield Case(
        "read-only folders",
        "new",
        ("rlhf", "new", "run/made", "--chat", "policy", "--preferences", "pairs.jsonl"),
        _closes("run"),
        obeys_modes=True,
    )


def _plan(command: str, versions: str = "", more: str = "") -> tuple[str, ...]:
    listed = versions or '["v1"]'
    entries = ", ".join(f"{{name: {name}, steps: [evaluate]}}" for name in json.loads(listed)) if not versions else None
    given = entries or "".join(f"{{name: {json.dumps(n)}, steps: [evaluate]}}" for n in json.loads(listed))
    return (
        *("rlhf", command, "--config", "plan.yaml", "--versions", f"[{given}]"),
        *(("--run", "run") if not versions else ("--run", "new_run")),
    )


PLAN = """run: run
configs: recipes/configs/embedded
inputs: {policy: policy, test_prompts: prompts.jsonl, helpfulness: reward, prompts: prompts.jsonl}
start: []
"""


def _puts(name: str, content: str | bytes) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        (folder / "plan.yaml").write_text(PLAN, encoding="utf-8")
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def _closes(name: str) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        _puts("x", "")(folder)
        for place in [folder / name, *(folder / name).rglob("*")]:
            place.chmod(0o555 if place.is_dir() else 0o444)

    return prepare


def _renames(old: str, new: str) -> Callable[[Path], object]:
    """A version's name in all figures of a run."""

    def prepare(folder: Path) -> None:
        for file in (folder / "run").rglob("*.json"):
            found = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(_with_name(found, old, new)), encoding="utf-8")

    return prepare


def _with_name(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {new if key == old else key: _with_name(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_name(part, old, new) for part in value]
    return new if value == old else value


def _no_stage() -> None:
    """No stage of the plan may start: what is looked at is the driver's door."""
    from rlhf.iteration import driver

    def refuse(*_: object, **__: object) -> None:
        raise SystemExit("a stage was started")

    driver.StageProcess = refuse  # type: ignore[assignment, misc]


def _full(code: int) -> Iterator[Case]:
    """From the n-th file on, nothing can be written below the working folder."""
    for words in (
        call("sft"),
        call("rejection_sampling"),
        call("evaluate"),
        call("collect_preferences"),
        _plan("run"),
        ("rlhf", "report", "run"),
    ):
        for after in (0, 2, 6):
            title = " ".join(words[:2]) if words[0] == "rlhf" else words[0]
            yield Case(
                "full disks",
                f"{title}: {errno.errorcode[code]} after {after}",
                words,
                _puts("x", ""),
                "it had written all by then",
                first=_fails_after(code, after),
            )


def _fails_after(code: int, after: int) -> Callable[[], object]:
    def arrange() -> None:
        import builtins
        import io

        here, count, opened = os.getcwd(), 0, io.open

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            inside = isinstance(file, (str, os.PathLike)) and os.path.abspath(os.fspath(file)).startswith(here)
            if inside and any(sign in mode for sign in "wax+"):
                count += 1
                if count > after:
                    raise OSError(code, os.strerror(code), os.fspath(file))
            return opened(file, mode, *args, **kwargs)

        builtins.open = io.open = open_

    return arrange
