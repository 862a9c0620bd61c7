"""What a stage failed of, in words for the user: its own last error line, or the signal that killed it and why."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

ERROR_LINE = re.compile(r"(?:\[rank\d+\]:\s*)?(error: .*|[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)")
LAUNCHER_LINE = re.compile(
    r"torch\.distributed\.elastic|subprocess\.CalledProcessError|[=-]+$"
    r"|(?:time|host|rank|exitcode|error_file|traceback)\s*: |Root Cause \(|(?:\[\d+\]|Failures):"
)
ROOT_CAUSE = re.compile(
    r"Root Cause \(first observed failure\):.*?rank\s*: (?P<rank>\d+).*?exitcode\s*: (?P<code>-?\d+)", re.DOTALL
)
SHELL_SIGNAL = 128
USERS = (2, 3)
"""Exit codes of a mistake of the user's, and of what `strict` refused (docs/stages.md)."""
ERROR_SENTENCE = re.compile(r"error: ")
LESS_MEMORY = "start it with less (micro_batch_size, slots of the driver) or on a machine with more"
CAUSES = {
    signal.SIGBUS: "a file that it had mapped was cut off, or the disk or /dev/shm is full",
    signal.SIGSEGV: "a native library crashed",
    signal.SIGABRT: "a native library gave up",
    signal.SIGILL: "a native library is built for another processor",
    signal.SIGTERM: "somebody asked it to end",
    signal.SIGINT: "somebody asked it to end",
    signal.SIGHUP: "its terminal was closed",
}


def describe_failure(status: int, log: Path, start: int = 0, *, out_of_memory_kills: int = 0) -> str:
    """One line on why a stage ended without its folder.

    Args:
        status: its exit status, negative for the signal that killed it.
        log: file with its output, from byte `start` on.
        out_of_memory_kills: how many processes the kernel ended for memory while it ran, see `out_of_memory_kills`.
    """
    text = _read(log, start)
    killed, who = _signal_of(status, text)
    if killed is None:
        how = f"exit code {status}" if status else "it ended without writing its folder"
        return _last_error_line(text) or how
    try:
        known = signal.Signals(killed)
    except ValueError:
        return f"{who}killed by signal {killed}"
    return f"{who}killed by signal {killed} ({known.name}): {_cause(known, out_of_memory_kills)}"


def is_users_mistake(status: int, log: Path, start: int = 0) -> bool:
    """Whether a stage ended by saying in a sentence what the user has to change: it would do so again.

    Args:
        status: its exit status; launchers of several processes have their own, and name that of the process.
        log: file with its output, from byte `start` on.
    """
    text = _read(log, start)
    found = list(ROOT_CAUSE.finditer(text))
    code = int(found[-1]["code"]) if found else status
    return code in USERS or any(ERROR_SENTENCE.match(line) for line in re.split(r"[\r\n]+", text))


def was_killed(status: int, log: Path, start: int) -> bool:
    """Whether a signal ended the stage, or one of its processes, and no error of its own."""
    return _signal_of(status, _read(log, start))[0] is not None


def out_of_memory_kills() -> int:
    """Processes that the kernel has ended for memory since this machine or container started (Linux)."""
    counted = 0
    for file in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError):
            lines = dict(line.split() for line in Path(file).read_text().splitlines())
            counted = max(counted, int(lines.get("oom_kill", 0)))
    return counted


def _signal_of(status: int, text: str) -> tuple[int | None, str]:
    """The signal that ended the stage or, of several processes, the one that failed first; and which one that was."""
    if status < 0:
        return -status, ""
    if found := list(ROOT_CAUSE.finditer(text)):
        code, rank = int(found[-1]["code"]), found[-1]["rank"]
        return (-code, f"process {rank} was ") if code < 0 else (None, "")
    if status > SHELL_SIGNAL:
        return status - SHELL_SIGNAL, "one of its processes was "
    return None, ""


def _cause(number: signal.Signals, out_of_memory_kills: int) -> str:
    if number != signal.SIGKILL:
        return CAUSES.get(number, "its log may say more")
    if out_of_memory_kills:
        return f"the machine ran out of memory; {LESS_MEMORY}"
    return f"somebody killed it, or the machine ran out of memory; if so, {LESS_MEMORY}"


def _read(log: Path, start: int) -> str:
    with log.open("rb") as stream:
        stream.seek(start)
        return stream.read().decode(errors="replace")


def _last_error_line(text: str) -> str:
    """The last sentence of ours, else the last line that names an error, else the last not of the launcher; or "".

    Where one process says in a sentence why it ends, the others follow with tracebacks about a closed connection.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line and not LAUNCHER_LINE.match(line)]
    errors = [found.group(1) for line in lines if (found := ERROR_LINE.match(line))]
    ours = [line for line in errors if line.startswith("error: ")]
    return (ours or errors or lines or [""])[-1].removeprefix("error: ")[:500]
