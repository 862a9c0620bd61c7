"""Started by test_zero_scoring.py: recipes that score with reward models, watched: what a process holds of each.

python tests/distributed/scoring_worker.py POLICY FIGURES
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.configuration import parse_config
from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.rewards import scoring
from rlhf.rewards.distributed import deal_out
from rlhf.rewards.loading import load_reward
from rlhf.rewards.scoring import RewardModelFunction
from rlhf.training.accelerator import make_accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "evaluation"))
import evaluate
import evaluate_rewards
import helpfulness_reward
import rejection_sampling

TALKS: list[Conversation] = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    for text, answer in (("what is", "mora"), ("hello", "I cannot help with that"), ("hello", "sure"))
]
UNANSWERED: Conversation = [{"role": "user", "content": "hello"}]
WORDS: dict[str, tuple[Any, Any, dict[str, str]]] = {
    "evaluate_rewards": (
        evaluate_rewards.main,
        evaluate_rewards.EvaluateRewardsConfig,
        {"test_preferences": "pairs.jsonl", "rewards.own": "own", "rewards.both": "both.yaml"},
    ),
    "evaluate": (
        evaluate.main,
        evaluate.EvaluateConfig,
        {"name": "v1", "helpfulness": "adapter", "safety": "own", "referee": "both.yaml"},
    ),
    "rejection_sampling": (
        rejection_sampling.main,
        rejection_sampling.RejectionSamplingConfig,
        {
            "helpfulness": "adapter",
            "safety": "own",
            "num_samples": "3",
            "selection.missing_end_penalty": "0.5",
            "finetuning.optimizer.batch_size": "2",
        },
    ),
    "helpfulness_reward": (
        helpfulness_reward.main,
        helpfulness_reward.HelpfulnessRewardConfig,
        {
            "preferences": "pairs.jsonl",
            "test_preferences": "pairs.jsonl",
            "other_share": "0",
            "training.optimizer.batch_size": "2",
        },
    ),
}


def shortness(conversations: Sequence[Conversation]) -> Tensor:
    return torch.tensor([2.0 - 0.5 * len(c[-1]["content"]) for c in conversations])


class Held:
    """How many weights of a reward model this process holds, within forward passes and after them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = weakref.ref(model)
        self.whole = self.now()
        self.passes = self.within = self.after = 0
        model.register_forward_pre_hook(self.count)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self.note)
        noted.append(self)

    def now(self) -> int:
        model = self.model()
        return 0 if model is None else sum(parameter.numel() for parameter in model.parameters())

    def count(self, *_: object) -> None:
        self.passes += 1

    def note(self, *_: object) -> None:
        self.within = max(self.within, self.now())

    def figures(self) -> dict[str, Any]:
        gone = self.model() is None
        return {**{name: getattr(self, name) for name in ("whole", "passes", "within", "after")}, "gone": gone}


noted: list[Held] = []


def watch() -> None:
    """From now on what is held of each reward model is noted; every row is a forward pass of its own."""
    begin: Any = RewardModelFunction.__init__
    score: Any = RewardModelFunction.score_ids

    def init(self: Any, model: nn.Module, *args: Any, **options: Any) -> None:
        begin(self, model, *args, **options)
        self.held = Held(model)

    def score_ids(self: Any, *args: Any) -> Any:
        found = score(self, *args)
        self.held.after = max(self.held.after, self.held.now())
        return found

    replaced: list[tuple[Any, str, Any]] = [(scoring, "batch_tokens_on", lambda device: 1)]
    replaced += [(RewardModelFunction, "__init__", init), (RewardModelFunction, "score_ids", score_ids)]
    for owner, name, value in replaced:
        setattr(owner, name, value)


def watched() -> list[Held]:
    """What was noted since the last call."""
    new = list(noted)
    noted.clear()
    return new


def dealt(accelerator: Accelerator) -> dict[str, Any]:
    """Three dialogues for two processes; of two the second fails; all for one process, and none for the other."""
    reward = load_reward("own", accelerator=accelerator)
    found: dict[str, Any] = {}
    try:
        deal_out([TALKS[0], UNANSWERED], lambda part: reward(part).tolist(), accelerator)
    except InputError as error:
        found["said"] = str(error)
    found["dealt"] = deal_out(TALKS, lambda part: reward(part).tolist(), accelerator)
    found["one has none"] = reward(TALKS if accelerator.is_main_process else []).tolist()
    return found


def run(name: str, policy: str, output: str) -> None:
    main, kind, words = WORDS[name]
    given = {"output": f"{output}/{name}", "policy": policy, **words}
    if name in ("evaluate", "rejection_sampling"):
        given |= {"prompts": "prompts.jsonl", "sampling.max_new_tokens": "6"}
    if name == "rejection_sampling":
        given["fine_tune_from"] = policy
    if name == "evaluate_rewards":
        del given["policy"]
    main(parse_config(kind, [word for option, value in given.items() for word in (f"--{option}", value)]))


def main(policy: str, output: str) -> None:
    """Runs all; writes OUTPUT.RANK.json."""
    accelerator = make_accelerator()
    watch()
    found, held = dealt(accelerator), {"dealt": watched()}
    for name in WORDS:
        run(name, policy, output)
        held[name] = watched()
    load_reward("own", accelerator=accelerator)  # those before make room for it
    figures = {"dealt": found, "held": {name: [one.figures() for one in some] for name, some in held.items()}}
    Path(f"{output}.{accelerator.process_index}.json").write_text(json.dumps(figures))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
