"""The tools around a run: `rlhf new | plan | run | report | verify | compare`; for checkpoints: `rlhf average | push`;
for preferences and rewards: `rlhf statistics | verify-reward`; for rows of any kind: `rlhf look | quality-gate`; for
people who judge answers: `rlhf annotate`; to talk to a policy: `rlhf chat`. Training itself is in the recipes:
`rlhf recipe list | run | copy | path`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from rlhf.commands import annotate, chat, checkpoints, rows, runs, shipped
from rlhf.errors import mistakes_in_a_sentence

COMMANDS = (runs, rows, checkpoints, annotate, chat, shipped)


def make_parser() -> argparse.ArgumentParser:
    """Of every command and its options, but for the driver's own behind `rlhf plan` and `rlhf run`."""
    parser = argparse.ArgumentParser(prog="rlhf", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, call: Callable[[argparse.Namespace], bool | None], text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        added.set_defaults(call=call)
        return added

    for kind in COMMANDS:
        kind.add_to(command)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; bad input is answered by one sentence and exit code 2."""
    parser = make_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    own, more = words, []
    if words[:1] in (["plan"], ["run"]) and words[1:2] not in (["-h"], ["--help"]):  # the rest is the driver's own
        named = 2 if words[1:2] and not words[1].startswith("--") else 1
        flags = [word for word in words[named:] if word == "--commands" and words[0] == "plan"]
        own, more = words[:named] + flags, [word for word in words[named:] if word not in flags]
    arguments = parser.parse_args(own)
    arguments.more = more
    with mistakes_in_a_sentence():
        passed = arguments.call(arguments)
    if passed is not None:
        raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
