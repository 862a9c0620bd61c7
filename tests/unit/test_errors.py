"""Sentences for users: one line each, of what a terminal prints and does not obey."""

from __future__ import annotations

import errno
import os
import sys

import pytest

import rlhf
from rlhf.errors import InputError, mistakes_in_a_sentence


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("name: \x1b[31mred\x07", "name: \\x1b[31mred\\x07"),
        ("name: half \ud83d of one", "name: half \\ud83d of one"),
        ("name: \u202eturned", "name: \\u202eturned"),
        ("torch says\nthis\tand\r\nthat\u2028too", "torch says this and  that too"),
        ("Ça va? 你好 🙂 €", "Ça va? 你好 🙂 €"),
        ("x" * 1000, f"{'x' * 100}...{'x' * 60}"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(given: str, said: str) -> None:
    assert str(InputError(given)) == said
    assert str(InputError(given)).encode()


def test_ctrl_c_ends_a_command_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, mistakes_in_a_sentence():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped; the same command goes on with what it has kept\n"


@pytest.mark.parametrize("program", ["recipes/sft.py", "bin/rlhf"])
def test_ctrl_c_while_a_program_of_ours_is_imported_shows_no_traceback(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    rlhf.quiet_interrupts("/home/me/my_script.py")
    assert sys.excepthook is sys.__excepthook__, "what others do is theirs"
    rlhf.quiet_interrupts(f"/home/me/{program}")
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "stopped\n"
    sys.excepthook(ValueError, ValueError("a fault of ours"), None)
    assert capsys.readouterr().err == "ValueError: a fault of ours\n"


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "make room on that disk"),
        (errno.EIO, "has failed; the system's log says more"),
        (errno.EROFS, "can be written to"),
        (errno.EACCES, "that you may read and write"),
    ],
)
def test_what_a_disk_says_is_a_sentence(number: int, way_out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, mistakes_in_a_sentence():
        raise OSError(number, os.strerror(number), "out/model.safetensors")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: 'out/model.safetensors': ") and way_out in said
