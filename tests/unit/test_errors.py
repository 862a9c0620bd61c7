"""Sentences for users: one line each, of what a terminal prints and does not obey."""

from __future__ import annotations

import pytest

from rlhf.errors import InputError


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
