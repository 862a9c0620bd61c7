"""`rlhf chat`: what is shown, what each policy has heard, and that nothing goes wrong without a word."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from rlhf.commands import chat as command
from rlhf.commands.chat import Talk, fitted, hold, side_by_side
from rlhf.conversation import Conversation, give_kwargs
from rlhf.errors import InputError
from rlhf.sampling.protocol import Sample, SamplingParams


@dataclass
class Parrot:
    """Says a word and the draw's seed, and remembers what it was asked."""

    word: str
    fails: type[BaseException] | None = None
    heard: list[Conversation] = field(default_factory=list)

    def sample(
        self,
        prompts: Sequence[Conversation],
        num_samples: int,
        params: SamplingParams,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        if self.fails is not None:
            raise self.fails("policy: no room")
        self.heard += prompts
        return [[Sample(f"{self.word} {params.seed}", (1, 2, 3), 0.0, params.seed != 1)] for _ in prompts]


def length(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])


def held(talk: Talk, *lines: str) -> list[str]:
    said: list[str] = []
    hold(talk, lines, said.append)
    return said


def test_two_policies_answer_side_by_side_each_in_its_own_dialogue() -> None:
    left, right = Parrot("left"), Parrot("rightmost")
    talk = Talk({"a": left, "b": right}, {"helpfulness": length}, SamplingParams(), "Be kind.", width=103)
    first, second = held(talk, "  one ", "two", "/quit", "never")
    assert first.splitlines() == [
        f"{'a':<50}   b",
        "",
        f"{'left 0':<50}   rightmost 0",
        "",
        f"{'helpfulness +6.00':<50}   helpfulness +11.00",
    ]
    assert "left 1 … [cut off after 3 tokens]" in second
    system = {"role": "system", "content": "Be kind."}
    roles = [("user", "one"), ("assistant", "rightmost 0"), ("user", "two")]
    assert right.heard[-1] == [system, *({"role": role, "content": text} for role, text in roles)]
    assert [len(dialogue) for dialogue in left.heard] == [2, 4]


def test_answers_are_drawn_again_and_questions_taken_back() -> None:
    parrot = Parrot("word")
    talk = Talk({"a": parrot}, {}, SamplingParams(seed=5))
    assert held(talk, "/again", "one", "/again", "two", "/back", "three") == [
        "nothing has been asked yet", "word 5", "word 6", "word 7", "taken back: two", "word 8",
    ]  # fmt: skip
    assert [message["content"] for message in parrot.heard[-1]] == ["one", "word 6", "three"]
    assert held(talk, "/system Be brief.", "four", "/new", "five", "/system", "six")[::2] == [
        "a new dialogue, with a system message", "a new dialogue", "a new dialogue, without a system message",
    ]  # fmt: skip
    assert [[message["content"] for message in dialogue] for dialogue in parrot.heard[-3:]] == [
        ["Be brief.", "four"], ["Be brief.", "five"], ["six"],
    ]  # fmt: skip


@pytest.mark.parametrize(("fails", "word"), [(InputError, "policy: no room"), (KeyboardInterrupt, "taken back")])
def test_what_fails_is_said_and_leaves_no_trace(fails: type[BaseException], word: str) -> None:
    well, ill = Parrot("well"), Parrot("ill", fails)
    talk = Talk({"a": well, "b": ill}, {}, SamplingParams())
    assert held(talk, "one", "/frobnicate", "", "half \ud800") == [
        word, "/frobnicate is no command; /help lists them", talk_error("half \ud800"),
    ]  # fmt: skip
    assert not talk.turns and talk.answers == {"a": [], "b": []}


def talk_error(text: str) -> str:
    with pytest.raises(InputError) as error:
        command.check_characters("question", text, way_out="type it again")
    assert "row" not in str(error.value)
    return str(error.value)


def test_who_wants_to_leave_is_told_how() -> None:
    """Before, `quit` went to the model."""
    parrot = Parrot("word")
    said = held(Talk({"a": parrot}, {}, SamplingParams()), "Quit", "exit", "quit smoking, how?", "/system \ud800")
    assert said[:2] == [f"{word} was not sent: /quit or Ctrl-D leaves" for word in ("Quit", "exit")]
    assert said[2] == "word 0" and [message["content"] for message in parrot.heard[0]] == ["quit smoking, how?"]
    assert said[3].startswith("system: holds half a character") and said[3].endswith("type it again")


def test_a_path_is_no_column_s_title_in_pieces() -> None:
    """Before, a path longer than its column was broken over two lines."""
    left, right = (f"/home/somebody/work/runs/demo/{name}/checkpoint" for name in ("sft", "v3/ppo"))
    assert fitted([left, right], 60) == [left, right]
    assert fitted([left, right], 40) == ["…/sft/checkpoint", "…/v3/ppo/checkpoint"]
    assert fitted(["a/b", "a/b/c" * 9], 20)[0] == "…/b"
    assert [len(title) for title in fitted(["x" * 90, "y" * 9], 21)] == [21, 9]
    lines = held(Talk({left: Parrot("l"), right: Parrot("r")}, {}, SamplingParams(), width=83), "one")[0].splitlines()
    assert lines[0].split() == ["…/sft/checkpoint", "…/v3/ppo/checkpoint"]


def test_a_terminal_obeys_no_answer() -> None:
    said = held(Talk({"a": Parrot("\x1b[2J\x07 red\u202e\n\ttab")}, {}, SamplingParams()), "one")
    assert said == ["\\x1b[2J\\x07 red\\x202e\n        tab 0"]


def test_a_narrow_terminal_has_one_above_the_other() -> None:
    assert side_by_side([["a", "", "x " * 30], ["b"]], 40) == ["a", "", " ".join("x" * 20), " ".join("x" * 10), "", "b"]


def test_characters_of_two_cells_leave_the_columns_straight() -> None:
    wide, code = "今天天气好" * 10, "    indented = 1"
    lines = side_by_side([[wide, code], ["right"] * 4], 83)
    assert lines == [
        wide[:20] + "   right",
        wide[20:40] + "   right",
        wide[40:] + " " * 23 + "right",
        code + " " * 27 + "right",
    ]
    assert side_by_side([["e\u0301a"], ["b"]], 83) == ["e\u0301a" + " " * 41 + "b"]


def test_a_real_checkpoint_answers_greedily_the_same(
    tiny_policy_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    monkeypatch.setattr(command, "asked", lambda: iter(["hello", "/again"]))
    reward = ["--helpfulness", "rlhf.rewards.examples:Brevity"]
    command.chat(parser.parse_args([str(tiny_policy_path), "--temperature", "0", "--max-new-tokens", "4", *reward]))
    said = capsys.readouterr().out
    assert said.startswith(f"loading {tiny_policy_path}, rlhf.rewards.examples:Brevity …\n")
    answers = said.split("Temperature 0.\n")[1].splitlines()
    assert answers[: len(answers) // 2] == answers[len(answers) // 2 :] and "helpfulness" in answers[-1]


@pytest.mark.parametrize("option", ["--chat-template-kwargs", "--chat_template_kwargs"])
def test_a_template_s_variables_are_the_policies(
    tiny_policy_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, `rlhf chat` and `rlhf annotate` let a thinking model think, whatever the run was told."""
    talks: list[Talk] = []
    monkeypatch.setattr(command, "hold", lambda talk, *_: talks.append(talk))
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    try:
        command.chat(parser.parse_args([str(tiny_policy_path), option, "{reasoning_effort: low}"]))
    finally:
        give_kwargs({})
    (sampler,) = talks[0].policies.values()
    template = sampler.renderer.tokenizer.chat_template  # type: ignore[attr-defined]
    assert template.startswith('{%- set reasoning_effort = reasoning_effort if reasoning_effort is defined else "low"')


def test_bad_words(tiny_policy_path: Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    for words, sentence in (
        ([str(tiny_policy_path)] * 2, "name one, or two different ones"),
        (["nowhere"], "nowhere is not a folder"),
        *(
            ([str(tiny_policy_path), "--temperature", value], "temperature: must be 0")
            for value in ("-1", "nan", "inf")
        ),
        ([str(tiny_policy_path), "--safety", "nowhere"], "safety"),
    ):
        with pytest.raises(InputError, match=sentence):
            command.chat(parser.parse_args(words))
