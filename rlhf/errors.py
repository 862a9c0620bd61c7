"""The exceptions that mean "this needs you", each a single sentence and never a traceback; and what is but a notice."""

from __future__ import annotations

import errno
import os
import re
import reprlib
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlhf.terminal import RED, painted


class InputError(ValueError):
    """Bad input by the user. The message is one sentence: the file and line or field, the value, the way out.

    A value of hundreds of characters without a space loses its middle. What a terminal would obey (escapes, marks that
    turn the text round) and half characters, which no stream takes, are shown as they are written in Python.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        shown = "".join(c if c.isprintable() else _escaped(c) for c in sentence)
        super().__init__(re.sub(r"\S{400,}", lambda word: f"{word[0][:100]}...{word[0][-60:]}", shown))


def _escaped(character: str) -> str:
    """A character that is not printed; a line's end is a space, for a sentence is one line."""
    return " " if character.isspace() else character.encode("unicode_escape").decode()


class SuspiciousError(InputError):
    """A stage asked for with `--strict true` did its work, and something about it looks wrong."""

    exit_code = 3


_WAYS_OUT = {
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ENOTDIR: "a part of that path is a file; name another",
    errno.EISDIR: "name a file",
    errno.ELOOP: "its links lead in a circle; name another",
    errno.EACCES: "name one that you may read and write",
    errno.EPERM: "name one that you may change",
    errno.EROFS: "name one on a file system that can be written to",
    errno.ENOSPC: "make room on that disk, and start the same command again",
    errno.EIO: "the disk or the network behind it has failed; the system's log says more",
    errno.EDQUOT: "make room in your quota, and start the same command again",
}


def path_sentence(error: OSError) -> str | None:
    """What the system said of a path, with the way out, as one sentence; None where it is no mistake of the user's."""
    way_out = _WAYS_OUT.get(error.errno or 0)
    if way_out is None or (error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT)):
        return None
    name = "" if error.filename is None else f"{quoted(os.fspath(error.filename))}: "
    return f"{name}{(error.strerror or '').lower()}; {way_out}"


@contextmanager
def mistakes_in_a_sentence() -> Iterator[None]:
    """Around a command's work: a user's mistake ends it with one sentence on stderr and its exit code, usually 2.

    Of several processes the first to end has the others ended by their launcher. So that the sentence comes, and comes
    once, the main process says it, and the others wait for that before they say it themselves.

    Where nobody reads standard output any more, as in `rlhf recipe list | head -1`, it ends with 1 and without a word;
    with Ctrl-C it ends with 130, and a word on how to go on.
    """
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        _say(str(error))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        notice("stopped; the same command goes on with what it has kept")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout.fileno(), select.POLLOUT)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            raise  # it was another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if (told := path_sentence(error)) is None:
            raise
        _say(told)
        raise SystemExit(2) from None


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
MAIN_PROCESS_SECONDS = 60
"""How long a process that is not the main one leaves it to that one to say what the user's mistake is."""


def _say(sentence: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(MAIN_PROCESS_SECONDS)
    print(f"{painted('error:', RED, sys.stderr)} {sentence}", file=sys.stderr)


def notice(sentence: str) -> None:
    """Say on stderr what is no mistake, and good to know; of several processes the main one does."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr)


_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = _QUOTED.maxlong = 60
_QUOTED.maxdict = _QUOTED.maxlist = _QUOTED.maxtuple = 3
_QUOTED.maxlevel = 3


def quoted(value: Any) -> str:
    """A value for a sentence: its repr, at most 60 characters; of a huge or deeply nested one only what is shown."""
    text = _QUOTED.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
