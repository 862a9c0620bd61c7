"""`rlhf chat`: talk to a policy, or to two side by side, with what the rewards say of each answer."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile, zip_longest
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from rlhf.commands import Command, add_template_kwargs
from rlhf.conversation import Conversation, Message, check_characters, give_kwargs
from rlhf.errors import InputError
from rlhf.paths import model_place
from rlhf.terminal import disarmed

if TYPE_CHECKING:
    from rlhf.rewards.protocol import RewardFunction
    from rlhf.sampling.protocol import Sample, Sampler, SamplingParams

HELP = """\
/again        other answers to the same
/back         take the last question back
/new          forget what was said
/system TEXT  a system message, from a new start on; /system alone: none
/quit         the end, as Ctrl-D"""
NARROW = 80
"""Columns of a terminal below which two answers stand one above the other."""
GAP = 3
LEAVING = ("quit", "exit", ":q")
"""What somebody types who wants to leave and does not know how."""
AGAIN = "type it again"
"""The way out of a line that no model can read."""


def add_to(command: Command) -> None:
    """Add the command."""
    add_options(command("chat", chat, "talk to a policy, or to two side by side, with what rewards say of each answer"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `rlhf chat`."""
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="checkpoint", help="of a policy; one or two")
    parser.add_argument("--helpfulness", help="score every answer: a reward-model folder, or package.module:function")
    parser.add_argument("--safety", help="the same by another")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: greedy; default: 0.7")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the likeliest tokens up to this; default: all")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="an answer is cut here; default: 256")
    parser.add_argument("--seed", type=int, default=0)
    add_template_kwargs(parser, "the policies' chat templates")


def chat(arguments: argparse.Namespace) -> None:
    """Talk on the terminal until its end of input."""
    from rlhf.models.checkpoint.folder import require_checkpoint
    from rlhf.rewards.specs import reward_files
    from rlhf.sampling.protocol import SamplingParams

    if len(arguments.checkpoints) > 2 or len(set(arguments.checkpoints)) < len(arguments.checkpoints):
        raise InputError(
            f"checkpoint: name one, or two different ones, got {' '.join(map(str, arguments.checkpoints))}"
        )
    check_characters("--system", arguments.system or "", way_out="give it again")
    give_kwargs(arguments.chat_template_kwargs)
    places = {str(checkpoint): require_checkpoint(model_place(checkpoint)) for checkpoint in arguments.checkpoints}
    asked_for = {name: getattr(arguments, name) for name in ("helpfulness", "safety")}
    given = {name: None if spec is None else str(model_place(spec)) for name, spec in asked_for.items()}
    reward_files(**given)
    params = SamplingParams(
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )

    print(f"loading {', '.join(dict.fromkeys(filter(None, [*places, *asked_for.values()])))} …", flush=True)
    import torch

    from rlhf.rewards.loading import load_reward
    from rlhf.sampling.opening import open_sampler
    from rlhf.sampling.source import PolicySource

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policies = {name: open_sampler(PolicySource(checkpoint=place), device) for name, place in places.items()}
    rewards = {name: load_reward(spec, device=device) for name, spec in given.items() if spec is not None}
    talk = Talk(policies, rewards, params, arguments.system, width=shutil.get_terminal_size().columns)
    print(f"Ask; /quit or Ctrl-D leaves, /help lists what else there is. Temperature {params.temperature:g}.")
    hold(talk, asked(), print)


def asked() -> Iterator[str]:
    """What is typed, line by line, until end of input or Ctrl-C."""
    while True:
        try:
            yield input("\n> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return


def hold(talk: Talk, lines: Iterable[str], say: Callable[[str], object]) -> None:
    """Answer lines, questions and commands, until they or `/quit` end it. Ctrl-C takes back what is being answered."""
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/help":
                say(HELP)
            elif command == "/new":
                talk.restart()
                say("a new dialogue")
            elif command == "/system":
                check_characters("system", rest, way_out=AGAIN)
                talk.system = rest.strip() or None
                talk.restart()
                say(f"a new dialogue, {'with' if talk.system else 'without'} a system message")
            elif command in ("/again", "/back") and not talk.turns:
                say("nothing has been asked yet")
            elif command == "/again":
                say(talk.ask(talk.take_back()))
            elif command == "/back":
                say(f"taken back: {talk.take_back()}")
            elif command.startswith("/"):
                say(f"{command} is no command; /help lists them")
            elif line.strip().lower() in LEAVING:
                say(f"{line.strip()} was not sent: /quit or Ctrl-D leaves")
            elif command:
                say(talk.ask(line.strip()))
        except InputError as error:
            say(str(error))
        except KeyboardInterrupt:
            say("taken back")


@dataclass
class Talk:
    """One person's questions, and each policy's own dialogue about them.

    Args:
        policies: name -> who answers; one or two.
        rewards: name -> what scores each dialogue.
        params: how answers are drawn; every draw has a seed of its own.
        system: message before each dialogue; None: none.
        width: columns of the terminal.
    """

    policies: Mapping[str, Sampler]
    rewards: Mapping[str, RewardFunction]
    params: SamplingParams
    system: str | None = None
    width: int = NARROW
    draws: int = 0
    turns: list[str] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget all that was said."""
        self.turns = []
        self.answers = {name: [] for name in self.policies}

    def take_back(self) -> str:
        """Forget the last question and its answers; the question."""
        for answers in self.answers.values():
            answers.pop()
        return self.turns.pop()

    def ask(self, question: str) -> str:
        """The answers of all policies with their scores, as they are shown. Nothing is kept where one fails."""
        check_characters("question", question, way_out=AGAIN)
        params = replace(self.params, seed=self.params.seed + self.draws)
        self.draws += 1
        prompts = {name: self.dialogue(name, question) for name in self.policies}
        drawn = {name: sampler.sample([prompts[name]], 1, params)[0][0] for name, sampler in self.policies.items()}
        dialogues: list[Conversation] = [
            [*prompts[name], {"role": "assistant", "content": sample.text}] for name, sample in drawn.items()
        ]
        scores = {reward: function(dialogues).tolist() for reward, function in self.rewards.items()}
        self.turns.append(question)
        for name, sample in drawn.items():
            self.answers[name].append(sample.text)
        titles = [[title, ""] for title in fitted(list(drawn), column_of(self.width))] if len(drawn) > 1 else [[]]
        blocks = [
            [*title, *shown(sample), *scores_line(scores, number)]
            for number, (title, sample) in enumerate(zip(titles, drawn.values(), strict=True))
        ]
        return "\n".join(side_by_side(blocks, self.width))

    def dialogue(self, name: str, question: str) -> Conversation:
        """What this policy has heard and said, and the question."""
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for asked_before, answer in zip(self.turns, self.answers[name], strict=True):
            messages += [{"role": "user", "content": asked_before}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": question}]


def shown(sample: Sample) -> list[str]:
    """An answer's lines, with a mark where it is cut off."""
    cut = "" if sample.finished else f" … [cut off after {len(sample.token_ids)} tokens]"
    return [disarmed(line) for line in (sample.text + cut).splitlines()] or [""]


def scores_line(scores: Mapping[str, Sequence[float]], number: int) -> list[str]:
    """A blank line and the raw scores of one answer, where there are rewards."""
    parts = [f"{name} {values[number]:+.2f}" for name, values in scores.items()]
    return ["", "   ".join(parts)] if parts else []


def column_of(width: int) -> int:
    """Columns that each of two answers has in a terminal of that width."""
    return width if width < NARROW else (width - GAP) // 2


def fitted(names: Sequence[str], column: int) -> list[str]:
    """Paths as titles of columns, none broken: where one is too long, without the folders that all of them lie in.

    What is still too long loses its middle.
    """
    if any(cells(name) > column for name in names):
        parts = [PurePath(name).parts for name in names]
        shared = [own[:-1] for own in parts]
        alike = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*shared, strict=False)))
        names = [str(PurePath("…", *own[alike:])) if alike else name for name, own in zip(names, parts, strict=True)]
    end = (column - 1) // 2
    return [name if cells(name) <= column else f"{name[: column - 1 - end]}…{name[-end:]}" for name in names]


def side_by_side(blocks: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of one block, or of two in columns; one above the other where the terminal is narrow."""
    column = width if len(blocks) == 1 else column_of(width)
    wrapped = [[part for line in block for part in wrap(line, column)] for block in blocks]
    if column == width:
        return [line for number, block in enumerate(wrapped) for line in ([""] if number else []) + block]
    rows = zip_longest(*wrapped, fillvalue="")
    return [f"{left}{' ' * (column - cells(left) + GAP)}{right}".rstrip() for left, right in rows]


def wrap(line: str, column: int) -> list[str]:
    """A line's parts, none of more cells than the column: a NUL stands for a character's second cell."""
    widened = "".join(character + "\0" * (cells(character) - 1) for character in line)
    return [part.replace("\0", "") for part in textwrap.wrap(widened, column)] or [""]


def cells(text: str) -> int:
    """Columns that a text takes in a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
