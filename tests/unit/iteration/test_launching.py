"""How stages are started: what is said of them, what is refused, the commands, the GPUs, the machines."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from rlhf.errors import InputError
from rlhf.iteration.launching import IN_ONE_PROCESS, Launch, Launches
from rlhf.iteration.plan import PlannedStage
from rlhf.iteration.processes.gpus import Dealer
from rlhf.iteration.processes.stage_process import command_of
from rlhf.launch import added_options, first_machine, machine_rank, visible_gpus
from rlhf.launch import main as start
from rlhf.shipped import RECIPES

ZERO2 = "ds_configs/accelerate_zero2.yaml"


def launch_of(given: Mapping[str, Any], step: str = "ppo", recipe: str = "ppo", slots: int = 16) -> Launch:
    return Launches(given, slots).of(step, recipe)


def stage(name: str, launch: Launch, folder: Path = Path("/run")) -> PlannedStage:
    return PlannedStage(name, "ppo", folder / "ppo.yaml", {"output": name}, (), folder / name, launch)


def test_a_step_s_words_go_before_its_recipe_s_and_those_before_the_default() -> None:
    given = {
        "default": {"processes": 2, "retries": 1, "env": {"A": 1, "B": "x"}},
        "sft": {"processes": 4, "env": {"B": "y"}},
        "safety_sft": {"mixed_precision": "bf16"},
    }
    launch = launch_of(given, "safety_sft", "sft")
    assert launch == Launch(processes=4, mixed_precision="bf16", env={"A": "1", "B": "y"}, retries=1)
    assert launch_of(given, "evaluate", "evaluate") == Launch(processes=2, retries=1, env={"A": "1", "B": "x"})
    assert launch_of({**given, "sft": {"processes": None}}, "sft", "sft").processes == 1, "null: nobody said it"


def test_what_does_not_share_its_work_is_started_in_one_process() -> None:
    default = {"processes": 4, "machines": 2, "prefix": "env", "retries": 1, "mixed_precision": "bf16"}
    for step, recipe in (("data", "prepare_data"), ("average_policies", "average_policies")):
        assert launch_of({"default": default}, step, recipe) == Launch(retries=1, mixed_precision="bf16")
        with pytest.raises(InputError, match=rf"^launch\.{step}\.processes: {recipe} runs in one process, got 2"):
            launch_of({"default": default, step: {"processes": 2}}, step, recipe)
    said = {file.stem for file in RECIPES.rglob("*.py") if "one_process=True" in file.read_text(encoding="utf-8")}
    assert said == IN_ONE_PROCESS


def test_both_reward_steps_by_one_name() -> None:
    given = {"rewards": {"processes": 4}, "safety_reward": {"processes": 2}}
    assert launch_of(given, "helpfulness_reward", "helpfulness_reward").processes == 4
    assert launch_of(given, "safety_reward", "safety_reward").processes == 2


def test_an_accelerate_file_says_what_the_launch_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the shipped files are found from any folder
    assert launch_of({"ppo": {"accelerate": ZERO2}}).processes == 8
    launch = launch_of({"ppo": {"accelerate": ZERO2, "processes": 4}})
    assert launch.processes == 4 and launch.mixed_precision is None
    assert launch.accelerate is not None and launch.accelerate.is_file()
    assert launch_of({"ppo": {"accelerate": "ds_configs/accelerate_cpu_2.yaml"}}).mixed_precision == "no"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"proceses": 2}, r"launch.ppo.proceses: no such field; did you mean processes\?"),
        ({"x": 2}, "launch.ppo.x: no such field; there are processes, machines, "),
        (3, r"launch.ppo: must be fields with values, such as \{processes: 2\}, got 3"),
        ({"processes": 0}, "launch.ppo.processes: must be a whole number of at least 1, got 0"),
        ({"processes": "two"}, "launch.ppo.processes: must be a whole number of at least 1, got 'two'"),
        ({"processes": 17}, r"launch.ppo.processes: must lie between 1 and slots \(16\), got 17"),
        ({"gpus": [0, 0]}, "launch.ppo.gpus: names a GPU twice"),
        ({"gpus": 1, "processes": 2}, "launch.ppo.gpus: 2 processes need one each, got 1"),
        ({"gpus": [1], "processes": 2}, "launch.ppo.gpus: 2 processes need one each, got 1"),
        ({"mixed_precision": "int4"}, "launch.ppo.mixed_precision: must be no, bf16 or fp16, got 'int4'"),
        ({"accelerate": "gone.yaml"}, "launch.ppo.accelerate: gone.yaml does not exist"),
        ({"accelerate": "docs"}, "launch.ppo.accelerate: docs is a folder; name an existing file"),
        ({"accelerate": "mkdocs.yml"}, "launch.ppo.accelerate: mkdocs.yml is no file of accelerate's"),
        ({"prefix": "no_such_command -N 2"}, "launch.ppo.prefix: there is no command 'no_such_command'"),
        ({"prefix": "srun 'half"}, "launch.ppo.prefix: is no command line"),
        ({"prefix": ["srun"]}, "launch.ppo.prefix: must be a command line"),
        ({"env": ["A=1"]}, "launch.ppo.env: must be variables with values"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "launch.ppo.env.CUDA_VISIBLE_DEVICES: is said by the field gpus"),
        ({"machines": 2, "processes": 2}, "launch.ppo.prefix: 2 machines need a command that starts the stage's on"),
        ({"machines": 2, "processes": 3, "prefix": "env"}, "launch.ppo.machines: 3 processes cannot be dealt out"),
        ({"machines": 2, "processes": 2, "prefix": "env", "gpus": 2}, "launch.ppo.gpus: are this machine's"),
        ({"retries": -1}, "launch.ppo.retries: must be a whole number of at least 0, got -1"),
        ({"retry_seconds": "soon"}, "launch.ppo.retry_seconds: must be seconds"),
    ],
)
def test_what_cannot_be_is_one_sentence(fields: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(InputError, match=f"^{words}"):
        launch_of({"ppo": fields})


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RLHF_STRICT", "RLHF_RUN", "RLHF_TRACKERS"):
        monkeypatch.delenv(name, raising=False)
    recipe = ["ppo.py", "--config", str(tmp_path / "ppo.yaml"), "--output", "v1/ppo"]
    (tmp_path / "ppo.py").touch()
    monkeypatch.chdir(tmp_path)

    def command(gpus: tuple[str, ...] | None = None, **fields: Any) -> list[str]:
        one = stage("v1/ppo", launch_of({"ppo": fields}), tmp_path)
        return command_of(one, tmp_path, gpus)

    python = sys.executable
    assert command() == [python, *recipe]
    assert command(gpus=("1",)) == ["env", "CUDA_VISIBLE_DEVICES=1", python, *recipe]
    assert command(mixed_precision="bf16") == ["env", "ACCELERATE_MIXED_PRECISION=bf16", python, *recipe]
    file = str(launch_of({"ppo": {"accelerate": ZERO2}}).accelerate)
    launcher = [python, "-m", "rlhf.launch"]
    assert command(accelerate=ZERO2) == [
        *launcher, "--num_machines", "1", "--num_processes", "8", "--config_file", file, *recipe
    ]  # fmt: skip
    monkeypatch.setenv("RLHF_STRICT", "true")
    prefixed = {"machines": 2, "processes": 16, "prefix": "env -i", "env": {"A": "b c"}, "mixed_precision": "bf16"}
    assert command(**prefixed) == [
        "env", "-i", "env", "RLHF_STRICT=true", "A=b c", *launcher,
        "--num_machines", "2", "--num_processes", "16", "--mixed_precision", "bf16", *recipe,
    ]  # fmt: skip
    assert shlex.split(shlex.join(command(**prefixed))) == command(**prefixed)


def test_two_stages_of_one_gpu_get_one_each_and_a_third_waits() -> None:
    dealer = Dealer(["0", "1"])
    first, second, third = (stage(name, Launch()) for name in "abc")
    taken = dealer.take(first), dealer.take(second)
    assert taken == (("0",), ("1",)) and dealer.take(third) is None
    dealer.give_back(("0",))
    assert dealer.take(third) == ("0",)
    assert dealer.take(stage("d", Launch(gpus=0))) == (), "what takes none does not wait"
    assert dealer.take(stage("e", Launch(prefix=("srun",)))) == (), "nor what starts elsewhere"


def test_named_gpus_are_waited_for() -> None:
    dealer = Dealer(["0", "1", "2"])
    assert dealer.take(stage("a", Launch(processes=2))) == ("0", "1")
    named = stage("b", Launch(gpus=(1, 2)))
    assert dealer.take(named) is None
    dealer.give_back(("0", "1"))
    assert dealer.take(named) == ("1", "2")


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (Launch(processes=3), r"launch \(a\): 3 GPUs, one a process, and this machine has 2"),
        (Launch(gpus=4), r"launch \(a\): 4 GPUs, asked for, and this machine has 2"),
        (Launch(gpus=(5,)), r"launch \(a\): there is no GPU 5 here; there are 0, 1"),
    ],
)
def test_gpus_that_are_not_there_are_refused(launch: Launch, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Dealer(["0", "1"]).check(stage("a", launch))
    Dealer([]).check(stage("a", Launch(processes=3)))


def test_the_gpus_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == ()
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path) == ("0", "1"), "a container's first GPU is 0, whichever of the machine's it is"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, MIG-7")
    assert visible_gpus(tmp_path) == ("4", "MIG-7")
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert visible_gpus(tmp_path) == ()


def options(**given: Any) -> dict[str, Any]:
    names = ("config_file", "num_machines", "num_processes", "mixed_precision", "dynamo_backend", "main_process_port")
    unset = dict.fromkeys((*names, "machine_rank", "main_process_ip", "gpu_ids"))
    return {**unset, "training_script": "ppo.py", "training_script_args": ["--output", "x"], **given}


SLURM = {"SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-08,12]", "SLURM_STEP_NUM_TASKS": "2"}


def test_a_machine_says_which_it_is() -> None:
    added = added_options(options(num_machines=2, num_processes=16, config_file=None), SLURM)
    assert added[:2] == ["--same_network", "--multi_gpu"]
    values = dict(zip(added[2::2], added[3::2], strict=True))
    port = int(values.pop("--main_process_port"))
    assert values == {
        "--num_machines": "2",
        "--dynamo_backend": "no",
        "--mixed_precision": "no",
        "--deepspeed_multinode_launcher": "standard",
        "--machine_rank": "1",
        "--main_process_ip": "gpu07",
    }
    other = added_options(options(num_machines=2, num_processes=16), {**SLURM, "SLURM_NODEID": "0"})
    assert f"--main_process_port {port}" in " ".join(other), "the same on both"


def test_the_gpus_that_were_dealt_go_before_those_of_an_accelerate_file() -> None:
    """accelerate would put the file's `gpu_ids` into CUDA_VISIBLE_DEVICES."""
    added = added_options(options(), {"CUDA_VISIBLE_DEVICES": "2,3"})
    assert added[added.index("--gpu_ids") + 1] == "all"
    assert "--gpu_ids" not in added_options(options(), {})
    assert "--gpu_ids" not in added_options(options(gpu_ids="0"), {"CUDA_VISIBLE_DEVICES": "2,3"})


def test_what_open_mpi_says_of_the_launcher_is_not_said_of_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed asserts that OMPI_COMM_WORLD_LOCAL_RANK is a process's LOCAL_RANK."""
    said = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    ours = {"MAIN_PROCESS_IP": "10.0.0.1", "ACCELERATE_USE_CPU": "true", "RLHF_PRECISION_UNSAID": "true"}
    for name, value in (said | ours).items():
        monkeypatch.setenv(name, value)
    started: list[tuple[int, set[str]]] = []
    monkeypatch.setattr(
        "accelerate.commands.launch.launch_command",
        lambda given: started.append((int(given.machine_rank), said.keys() & os.environ.keys())),
    )
    start(["--num_machines", "2", "--num_processes", "16", "recipe.py"])
    assert started == [(1, set())]


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("a", "a"), ("a,b", "a"), ("n[1-3]", "n1"), ("n[03,05]", "n03"), ("n[1-2]-ib,m", "n1-ib"), ("x1,n[1-2]", "x1")],
)
def test_the_first_of_slurm_s_machines(hosts: str, first: str) -> None:
    assert first_machine({"SLURM_JOB_NODELIST": hosts}) == first
    assert first_machine({"SLURM_JOB_NODELIST": hosts, "MAIN_PROCESS_IP": "10.0.0.1"}) == "10.0.0.1"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "nothing says which of the 2 machines this is"),
        ({"SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "16"}, "2 machines, and the command was started 16 times"),
        ({"MACHINE_RANK": "2"}, "MACHINE_RANK is 2, and there are 2 machines"),
    ],
)
def test_a_machine_that_cannot_know_is_told(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        machine_rank(2, environment)
    with pytest.raises(InputError, match="nothing says where the first machine is"):
        first_machine({})


def test_nobody_s_precision_is_left_open_and_a_file_s_is_kept() -> None:
    root = Path(__file__).parents[3] / "ds_configs"
    assert "--mixed_precision" in added_options(options(config_file=str(root / "accelerate_zero3.yaml")), {})
    for said in ({"mixed_precision": "bf16"}, {"config_file": str(root / "accelerate_cpu_2.yaml")}):
        assert "--mixed_precision" not in added_options(options(**said), {})


def test_the_plan_is_shown_with_prefix_and_environment_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    plan = ["plan", "--config", "recipes/configs/embedded/iterative_rlhf.yaml", "--run", str(tmp_path / "run")]
    rewards = {"accelerate": "ds_configs/accelerate_cpu_zero2.yaml", "env": {"A": "b c"}, "prefix": "nice -n 3"}
    main(plan)
    assert "recipes/" not in capsys.readouterr().out, "where nobody asks there is a line a stage"
    main([*plan, "--commands", "--launch", json.dumps({"rewards": rewards, "evaluate": {"gpus": [1]}})])
    lines = capsys.readouterr().out.splitlines()
    commands = {line.split()[0]: lines[number + 1].strip() for number, line in enumerate(lines[:-1])}
    python = sys.executable.removeprefix(f"{os.getcwd()}/")
    launcher = f"{python} -m rlhf.launch --num_machines 1 --num_processes 2 --config_file ds_configs/"
    for stage in ("v1/helpfulness_reward", "v3/safety_reward"):
        assert commands[stage].startswith(f"nice -n 3 env 'A=b c' {launcher}accelerate_cpu_zero2.yaml recipes/"), stage
    assert commands["v2/evaluation"].startswith(f"env CUDA_VISIBLE_DEVICES=1 {python} recipes/")
    assert commands["v3/ppo"].startswith(f"{python} recipes/"), "what the command line says replaces the file's"
    with pytest.raises(SystemExit) as ended:
        main([*plan, "--launch.ppo.procesess", "2"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: launch.ppo.procesess: no such field; did you mean processes?\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("code", "ends"), [(2, 2), (3, 3), (1, None)])
def test_nothing_follows_a_sentence_of_the_launched(
    monkeypatch: pytest.MonkeyPatch, processes: int, code: int, ends: int | None
) -> None:
    """accelerate raises what its processes ended with; where these have said why, that is all that is said."""
    import accelerate.commands.launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from rlhf import launch

    failures = {
        rank: ProcessFailure(local_rank=rank, pid=1, exitcode=own, error_file="")
        for rank, own in enumerate((code, -15)[:processes])
    }
    raised = subprocess.CalledProcessError(code, "sft.py") if processes == 1 else ChildFailedError("sft.py", failures)

    def fail(options: object) -> None:
        raise raised

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(accelerate.commands.launch, "launch_command", fail)
    with pytest.raises(type(raised) if ends is None else SystemExit) as caught:
        launch.main(["--num_processes", str(processes), "sft.py"])
    assert ends is None or caught.value.code == ends
