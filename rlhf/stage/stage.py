"""The stage itself: what every recipe opens first and works in."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from rlhf.configuration import to_dict
from rlhf.conversation import give_kwargs
from rlhf.errors import InputError, SuspiciousError
from rlhf.jsonl import Row, write_rows
from rlhf.lifetime import RUN_MARK
from rlhf.metrics import MetricsLog, Tracked, asked_trackers
from rlhf.stage.card import recipe_name, write_cards
from rlhf.stage.closing import SUSPICIOUS, Closing, closing_lines
from rlhf.stage.digests import FileDigests
from rlhf.stage.fields import Effect, datasets_of, inputs_of, options_of, require_memory_of, starts_of
from rlhf.stage.files import STAGE_FILE, digest, package_versions, peak_memory_mb, require_new, write_json
from rlhf.stage.held import held
from rlhf.stage.kept import ATTEMPT_FILE, Kept, require_ours, take_over
from rlhf.stage.record import StageRecord, record_of_rows
from rlhf.terminal import YELLOW, be_quiet, painted

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every stage's config has.

    Args:
        output: folder of this stage.
        strict: suspicious lines at the end (docs/stages.md lists them) are a failure: exit code 3, and what was made
            stands, whole, in `<output>.suspicious` for a look.
        chat_template_kwargs: variables of the policies' chat template, e.g. {enable_thinking: false}; saved in the
            template of each checkpoint that is made, for later stages and servers (docs/templates.md).
        trackers: where the figures go beside metrics.jsonl and TensorBoard: any tracker of accelerate's, e.g. wandb.
        quiet: nothing on the terminal but warnings, errors, and at the end one line.
    """

    output: Annotated[Path, Effect.NONE]
    strict: Annotated[bool, Effect.NONE] = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trackers: Annotated[tuple[str, ...], Effect.NONE] = ()
    quiet: Annotated[bool, Effect.NONE] = False


@dataclass(frozen=True, kw_only=True)
class KeepingConfig(StageConfig):
    """What the config of a stage that goes on after a kill has.

    Args:
        fresh: drop what a broken-off attempt left where it was made in another way, which is refused otherwise; what
            fits is taken over.
    """

    fresh: Annotated[bool, Effect.NONE] = False


class Processes(Protocol):
    """What a stage needs of an `accelerate.Accelerator`."""

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes."""
        ...

    @property
    def num_processes(self) -> int:
        """How many there are."""
        ...

    def wait_for_everyone(self) -> None:
        """A barrier."""
        ...


class _ByRank:
    """Of a recipe that makes no accelerator: the main process is RANK 0, and nobody waits."""

    num_processes = 1

    @property
    def is_main_process(self) -> bool:
        return os.environ.get("RANK", "0") == "0"

    def wait_for_everyone(self) -> None:
        pass


def open_stage(config: Any, *, output: str | os.PathLike[str] | None = None, one_process: bool = False) -> Stage:
    """The stage of a config, checked at the door: before torch is loaded, and before anything is written.

    Args:
        config: the recipe's dataclass. Its fields' types say what is read (`rlhf.stage.fields`).
        output: the stage's final folder; None: the config's own.
        one_process: it cannot share its work with other processes of a launch.

    Raises:
        InputError: the output is there already (nothing finished is overwritten), what is written first is not ours to
            empty, something that the config names is missing or not what it has to be, or there are several processes
            where there may be one.
    """
    stage = Stage(config, Path(config.output if output is None else output))
    if one_process and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{recipe_name(config)}: runs in one process; start it with `python`")
    return stage


def on_main_process(record: Callable[Concatenate[Stage, P], None]) -> Callable[Concatenate[Stage, P], None]:
    """Of a function that records what a stage, its first argument, has made: the main process does, others pass by."""

    @functools.wraps(record)
    def by_main(stage: Stage, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if stage.is_main:
            record(stage, *args, **kwargs)

    return by_main


class Stage:
    """One stage of a run. Every process of a launch has one and calls its methods together.

    config: the recipe's. output: the final folder. inputs: name -> path of all that the config's fields name.
    folder: where it is written until it is finished. closing: what it will say at its end.
    """

    def __init__(self, config: Any, output: Path) -> None:
        self.config = config
        require_new(output)
        self.output = output
        self.folder = output.with_name(output.name + ".partial")
        self.closing = Closing()
        self._quiet = bool(getattr(config, "quiet", False))
        be_quiet(self._quiet)
        self.processes: Processes = _ByRank()
        self.went_on: list[str] = []
        require_ours(self.folder)
        self._strict = _asked("strict", config)
        if self._strict and (found := _suspicious_folder(output)).exists():
            raise InputError(
                f"strict: {found} is there from an earlier attempt; look at it, then move it to {output} to accept it, "
                "or remove it to run the stage again"
            )
        give_kwargs(getattr(config, "chat_template_kwargs", {}))
        self.trackers = asked_trackers(getattr(config, "trackers", ()))
        self.inputs = inputs_of(config)
        self._log: MetricsLog | None = None

    @contextmanager
    def work(self, processes: Processes | None = None, *kept: Kept) -> Iterator[Path]:
        """The stage's folder to write into; on a clean exit it becomes `output`, with `stage.json` in it.

        On an exception the folder stays for a look, and is replaced by the next attempt, but for what `kept` names.

        Args:
            processes: the accelerator of the launch; None: one process (of a launch, that of RANK 0 writes).
            kept: kinds of work that the next attempt takes over (`rlhf.stage.kept`).

        Raises:
            InputError: what the config names takes more memory than a process has; another process is at work in the
                folder; or kept work was made in another way, and `--fresh true` is not asked for.
            SuspiciousError: with `--strict true`, where something looks wrong.
        """
        self.processes = processes or _ByRank()
        started = time.monotonic()
        if processes is not None:
            require_memory_of(self.config, processes)
        with ExitStack() as stack:
            self._together(lambda: stack.enter_context(held(self.folder)))
            self._together(lambda: self._begin(kept))
            if self.trackers and processes is not None:
                self._together(lambda: self.log)  # what does not start is said before anything is computed
            yield self.folder
            self.processes.wait_for_everyone()
            self._together(lambda: self._finish(kept, started))

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.processes.is_main_process

    @property
    def log(self) -> MetricsLog:
        """The stage's `metrics.jsonl`, opened at first use."""
        if self._log is None:
            self._log = MetricsLog(self.folder, self.processes, self._tracked())
        return self._log

    def _tracked(self) -> Tracked | None:
        """What trackers are told; None where none are asked for, or the recipe has no accelerator, which they need."""
        if not self.trackers or isinstance(self.processes, _ByRank):
            return None
        output, run = self.output.resolve(), os.environ.get(RUN_MARK)
        home = Path(run) if run is not None and output.is_relative_to(run) else output.parent
        return Tracked(
            self.trackers,
            group=home.name,
            stage=output.relative_to(home).as_posix(),
            home=home,
            settings={
                name: value if isinstance(value, (bool, int, float)) else str(value)
                for name, value in options_of(self.config, {})[0].items()
                if value is not None and value not in ("", [], (), {})
            },
        )

    def write_json(self, name: str, content: Any, *, shown: str | None = None) -> None:
        """Write a file of the stage's, and print what people read of it (`shown`); the main process does."""
        if self.is_main:
            write_json(self.folder / name, content)
        if shown is not None:
            self.say(shown)

    def write_rows(self, name: str, rows: Iterable[Row]) -> None:
        """Write a file of rows, one JSON object a line; the main process does."""
        if self.is_main:
            write_rows(self.folder / name, rows)

    def say(self, text: str, *, error: bool = False) -> None:
        """Print on the terminal, unless it is to be quiet; the main process does.

        error: on stderr, for what is no result.
        """
        if self.is_main and not self._quiet:
            print(text, file=sys.stderr if error else sys.stdout)

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Name -> digest of the content of each input, read at first use; the main process alone should ask."""
        run = os.environ.get(RUN_MARK)  # of a driver, which remembers what its stages have read
        of = digest if run is None else FileDigests(Path(run)).of
        return {name: of(path) for name, path in self.inputs.items()}

    def _begin(self, kept: tuple[Kept, ...]) -> None:
        """The main process: digests, kept work, an empty folder."""
        self.went_on = take_over(self.folder, kept, self.digests, fresh=_asked("fresh", self.config))

    def _datasets(self) -> list[str]:
        made = (record_of_rows(path) for path in self.inputs.values())
        behind = [name for record in made if record is not None for name in record.get("datasets", [])]
        return list(dict.fromkeys([*datasets_of(self.config), *behind]))

    def _finish(self, kept: tuple[Kept, ...], started: float) -> None:
        """The main process: stage.json, the checkpoints' cards, the closing block, the final name."""
        done = [self.output.with_name(f"{self.output.name}.{kind.name}.done") for kind in kept]
        for kind, aside in zip(kept, done, strict=True):  # in one move: what is large takes a while to remove
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.folder / kind.name, aside)
        seconds = round(time.monotonic() - started, 3)
        closing = self.closing.record(self.folder)
        if self._log is not None:
            self._log.finish(closing["figures"])
        record: StageRecord = {
            "command": [Path(sys.executable).name, *sys.argv],
            "config": to_dict(self.config),
            "inputs": {n: {"path": os.fspath(p), "digest": self.digests[n]} for n, p in self.inputs.items()},
            "datasets": self._datasets(),
            "launch": {
                "processes": self.processes.num_processes,
                "mixed_precision": getattr(self.processes, "mixed_precision", None),
            },
            "seconds": seconds,
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "packages": package_versions(),
            "went_on": self.went_on,
            "closing": closing,
        }
        starts = [self.inputs[name] for name in starts_of(self.config, self.inputs)]
        write_cards(self.folder, record, recipe_name(self.config), starts)
        write_json(self.folder / STAGE_FILE, record)
        (self.folder / ATTEMPT_FILE).unlink()  # one of the two is there at any moment: they say that the folder is ours
        refused = self._strict and bool(closing["suspicious"])
        final = _suspicious_folder(self.output) if refused else self.output
        os.replace(self.folder, final)
        for aside in done:
            shutil.rmtree(aside)
        for line in closing_lines(final, closing, seconds, self.closing.table, brief=self._quiet):
            print(painted(line, YELLOW, sys.stderr) if line.startswith(SUSPICIOUS) else line, file=sys.stderr)
        if refused:
            raise SuspiciousError(
                f"strict: {'; '.join(closing['suspicious'])} (what was made is in {final}: move it to {self.output} to "
                "accept it)"
            )

    def _together(self, action: Callable[[], object]) -> None:
        """The main process acts while the others wait; its InputError is raised by all of them."""

        def act() -> None:
            action()

        self.agreed(act)

    def agreed(self, ask: Callable[[], T]) -> T:
        """What the main process finds, on every process; all call it. Its InputError is raised by all of them."""
        found: T | None = None
        failure: InputError | None = None
        if self.is_main:
            try:
                found = ask()
            except InputError as error:
                failure = error
        if self.processes.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            said: list[Any] = [found, failure]
            broadcast_object_list(said)
            found, failure = said
        if failure is not None:
            raise failure
        return cast(T, found)


def _asked(option: str, config: Any) -> bool:
    """Whether strict or fresh is asked for: by the config, or for a driver's stages by RLHF_STRICT and RLHF_FRESH."""
    return bool(getattr(config, option, False)) or os.environ.get(f"RLHF_{option.upper()}") == "true"


def _suspicious_folder(output: Path) -> Path:
    return output.with_name(output.name + ".suspicious")
