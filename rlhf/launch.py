"""`accelerate launch`, with what only the machine on which it runs knows. So the driver starts what needs a launcher.

    python -m rlhf.launch --num_processes 2 recipes/sft.py --config …
    srun -N 2 --ntasks-per-node 1 python -m rlhf.launch --num_machines 2 --num_processes 16 recipes/ppo.py --config …

Its options are accelerate's. What is not said:

- mixed precision is bf16 where a GPU computes in it, else no (`rlhf.training.accelerator`);
- of several machines, which one this is and where the first one is: MACHINE_RANK and MAIN_PROCESS_IP, or what Slurm or
  Open MPI say in the environment of what they start;
- the port on which the processes meet: a free one; of several machines, one that follows from the command.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import InputError

PRECISION_UNSAID = "RLHF_PRECISION_UNSAID"
"""Set for the processes where nobody said a mixed precision: accelerate tells them "no" then."""

RANKS = ("MACHINE_RANK", "SLURM_NODEID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
OPEN_MPI = "OMPI_COMM_WORLD_"
"""First letters of what Open MPI says of the process that it started, this one. DeepSpeed would take it as said of each
of those that are started here, and end all but the first of a machine."""
FIRST_PORT, PORTS = 20_000, 10_000
VISIBLE = "CUDA_VISIBLE_DEVICES"
ASKS_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LEFT_TO_TORCH = "PET_SIGNALS_TO_HANDLE"
GRACE_SECONDS = 30.0
"""For processes that were asked to end; torch's launcher gives its own as much."""
SAID = (2, 3)
"""Exit codes of a process that has said in a sentence what the user has to change (`rlhf.errors`)."""


def visible_gpus(devices: Path = Path("/dev")) -> tuple[str, ...]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them: its own list, else all."""
    found = len(list(devices.glob("nvidia[0-9]*")))
    if not found and (devices / "kfd").exists():
        found = len(list(devices.glob("dri/renderD*"))) or 1
    if not found and (devices / "dxg").exists():
        found = 1
    asked = os.environ.get(VISIBLE)
    if not found or asked is None:
        return tuple(map(str, range(found)))
    return tuple(name for name in (part.strip() for part in asked.split(",")) if name and name != "-1")


def processes_here() -> int:
    """How many processes the launcher has started on this machine; 1 without one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def has_gpu() -> bool:
    """Whether there is one, without importing torch."""
    return bool(visible_gpus())


def main(options: Sequence[str]) -> None:
    """Start the processes of this machine, and end as they do.

    Where they have said in a sentence what the user has to change, nothing follows it: no traceback of accelerate's.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    parser = launch_command_parser()
    given = vars(parser.parse_args(list(options)))
    added = added_options(given, os.environ)
    if given["mixed_precision"] is None and "--mixed_precision" in added:
        os.environ[PRECISION_UNSAID] = "true"
    if given["config_file"] is None and not has_gpu():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    for name in [name for name in os.environ if name.startswith(OPEN_MPI)]:
        del os.environ[name]
    try:
        launch_command(parser.parse_args([*added, *options]))
    except Exception as error:
        if (code := first_exit_code(error)) in SAID:
            raise SystemExit(code) from None
        raise


class _AskedToEnd(BaseException):
    """Somebody asked this process to end. No Exception, of which accelerate and torch would print the traceback."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.sigval = signal.Signals(number)


def run(options: Sequence[str]) -> None:
    """`main` of a process of its own: where that is asked to end, by Ctrl-C or a closed terminal too, its processes end
    with it, one line says so, and it ends by the same signal."""
    import accelerate.commands.launch  # noqa: F401  # with torch; until then there is no process to end

    ending = False

    def ask(number: int, _: object) -> None:
        logging.disable(logging.WARNING)  # torch would say what it sends to which process
        if not ending:
            raise _AskedToEnd(number)

    for number in ASKS_TO_END:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, ask)
    os.environ.setdefault(LEFT_TO_TORCH, "SIGQUIT")
    try:
        main(options)
        return
    except BaseException as error:
        asked = getattr(error, "sigval", None)  # an older torch catches signals itself, and its exception has it too
        if asked is None:
            raise
    ending = True
    _end_children()
    print(f"ended by {asked.name}, and its processes with it", file=sys.stderr, flush=True)
    signal.signal(asked, signal.SIG_DFL)
    os.kill(os.getpid(), asked)


def _end_children() -> None:
    import psutil

    children = psutil.Process().children()
    for child in children:
        child.terminate()
    for child in psutil.wait_procs(children, GRACE_SECONDS)[1]:
        child.kill()


def first_exit_code(error: BaseException) -> int | None:
    """Exit code of the process that failed first, of what accelerate raises then; below 0 the signal that ended it.

    None: it is about something else.
    """
    if isinstance(error, subprocess.CalledProcessError):  # of one process
        return error.returncode
    find = getattr(error, "get_first_failure", None)  # torch's ChildFailedError, of several
    return None if find is None else int(find()[1].exitcode)


def added_options(given: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """The options of accelerate's that are added to those that were given.

    Args:
        given: accelerate's own reading of its options; None where one was not given.
        environment: of this process.

    Raises:
        InputError: of several machines, the environment does not say which one this is or where the first one is; or
            another number of them was started.
    """
    file = _file(given["config_file"])
    machines = given["num_machines"] or file.get("num_machines", 1)
    added: dict[str, str] = {}
    if given["config_file"] is None:
        added["num_machines"] = str(machines)
    if given["gpu_ids"] is None and VISIBLE in environment:
        added["gpu_ids"] = "all"  # of these; a file, or accelerate's own default one, would put others in their place
    if given["dynamo_backend"] is None and "dynamo_config" not in file:
        added["dynamo_backend"] = "no"
    deepspeed = file.get("deepspeed_config") or {}
    if given["mixed_precision"] is None and "mixed_precision" not in file and "deepspeed_config_file" not in deepspeed:
        added["mixed_precision"] = "no"
    port = given["main_process_port"] or file.get("main_process_port")
    flags: list[str] = []
    if machines > 1:
        added["deepspeed_multinode_launcher"] = "standard"  # each machine starts its own, as here
        flags.append("--same_network")
        if given["machine_rank"] is None:
            added["machine_rank"] = str(machine_rank(machines, environment))
        if given["main_process_ip"] is None:
            added["main_process_ip"] = first_machine(environment)
    if port is None:
        added["main_process_port"] = str(_port(given, environment) if machines > 1 else 0)
    if given["config_file"] is None and (given["num_processes"] or 1) > 1:
        flags.append("--multi_gpu")  # accelerate's word for several processes, on CPUs too
    return flags + [part for name, value in added.items() for part in (f"--{name}", value)]


def machine_rank(machines: int, environment: Mapping[str, str]) -> int:
    """Which of the machines this one is, from 0.

    Raises:
        InputError: the environment does not say, or says that another number of them was started.
    """
    name = next((name for name in RANKS if environment.get(name, "").isdigit()), None)
    if name is None:
        raise InputError(
            f"num_machines: nothing says which of the {machines} machines this is; start the command on each by srun, "
            "by mpirun, or with MACHINE_RANK=0, 1, … in its environment"
        )
    count = next((int(environment[c]) for c in COUNTS if environment.get(c, "").isdigit()), machines)
    if name != "MACHINE_RANK" and count != machines:
        raise InputError(
            f"num_machines: {machines} machines, and the command was started {count} times; let it be once on each "
            "(srun: --nodes, --ntasks-per-node 1)"
        )
    if (rank := int(environment[name])) >= machines:
        raise InputError(f"num_machines: {name} is {rank}, and there are {machines} machines")
    return rank


def first_machine(environment: Mapping[str, str]) -> str:
    """Address of the machine of rank 0: MAIN_PROCESS_IP, or the first name of Slurm's list of the step's machines.

    Raises:
        InputError: there is neither.
    """
    said = environment.get("MAIN_PROCESS_IP")
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if said or not hosts:
        if said:
            return said
        raise InputError("main_process_ip: nothing says where the first machine is; set MAIN_PROCESS_IP on each")
    match = re.match(r"(?P<before>[^,\[]+)(?:\[(?P<first>\w+)[^\]]*\](?P<after>[^,\[]*))?", hosts)
    if match is None:
        raise InputError(f"main_process_ip: {hosts!r} is no list of Slurm's; set MAIN_PROCESS_IP on each machine")
    return "".join(part or "" for part in match.group("before", "first", "after"))


def _port(given: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    """The same on each machine, another one for another stage of a run, or another job."""
    words = [environment.get("SLURM_JOB_ID", ""), str(given["training_script"]), *given["training_script_args"]]
    return FIRST_PORT + int(hashlib.sha256("\0".join(words).encode()).hexdigest(), 16) % PORTS


def _file(path: str | None) -> Mapping[str, Any]:
    """The content of an accelerate file; what is wrong with it accelerate itself says."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
