"""`rlhf average | push | verify-reward`: checkpoints, and what scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf.commands import Command
from rlhf.paths import model_place


def add_to(command: Command) -> None:
    """Add the commands."""
    added = command(
        "verify-reward",
        lambda a: verify_reward(str(model_place(a.reward))),
        "does a reward function keep to what the library relies on?",
    )
    added.add_argument("reward", help="a reward-model folder, or package.module:attribute of your own reward function")
    added = command(
        "average",
        lambda a: average(a.checkpoints, a.output, a.weights, a.rank),
        "one reward model, or policy, whose weights are the mean of several ones'",
    )
    added.add_argument("checkpoints", nargs="+", type=model_place, metavar="checkpoint")
    added.add_argument("--output", type=Path, required=True)
    added.add_argument("--weights", nargs="+", type=float, help="one a checkpoint; default: all the same")
    added.add_argument("--rank", type=int, help="of the mean of adapters; default: the sum of theirs, without loss")
    added = command(
        "push",
        lambda a: push(a.checkpoint, a.name, a.private, a.base),
        "a checkpoint and its card to the Hugging Face hub",
    )
    added.add_argument("checkpoint", type=Path, help="of a policy or reward model, whole or an adapter")
    added.add_argument("name", help="org/name")
    added.add_argument("--private", action="store_true", help="make the repository private")
    added.add_argument("--base", help="org/name of the model that it came from; default: what its card says")


def verify_reward(spec: str) -> bool:
    """Print for every check of `rlhf.rewards.contract` whether the reward function passes; False where one does not."""
    from rlhf.rewards.specs import reward_files

    reward_files(reward=spec)

    from rlhf.rewards.contract import check_reward_function
    from rlhf.rewards.loading import load_reward

    findings = check_reward_function(load_reward(spec))
    for name, problem in findings.items():
        print(f"{name:<8} {'ok' if problem is None else f'BROKEN: {problem}'}")
    return not any(findings.values())


def average(checkpoints: Sequence[Path], output: Path, weights: Sequence[float] | None, rank: int | None) -> None:
    """Write the mean of reward models or policies (`rlhf.models.averaging`)."""
    from rlhf.models.averaging import average_checkpoints

    average_checkpoints(checkpoints, output, weights=weights, rank=rank)


def push(checkpoint: Path, name: str, private: bool, base: str | None) -> None:
    """Upload a checkpoint (`rlhf.start.push`) and print its address."""
    from rlhf.start.push import push

    print(push(checkpoint, name, private=private, base=base))
