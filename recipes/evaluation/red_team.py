"""Red teaming: people try to make the model break its guidelines; every attempt is kept (Llama 2 paper, section 4.3).

Interactive: type a prompt, read the answer, say whether it is a violation; an empty line begins a new dialogue, the end
of the input (Ctrl-D) ends the session. Or from a file of prompts, judged by a refusal detector, a safety reward model,
a checker of your own or a gold scorer. Rows are appended to one log over people, sessions and rounds.

    python recipes/evaluation/red_team.py --config recipes/configs/embedded/red_team.yaml
    python recipes/evaluation/red_team.py --policy my_model --log red_team.jsonl --round v1 --person ann

Appends to the log one row a prompt; prints the table of all rounds in it: violations per prompt, and per person and
hour.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation, give_kwargs
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_prompts
from rlhf.errors import InputError
from rlhf.evaluation.safety.fields import Refusals
from rlhf.evaluation.safety.figures import SafetyPrompt, judges
from rlhf.evaluation.safety.judging import answer_and_judge, load_judges
from rlhf.evaluation.safety.red_team import Attempt, append, read_log, round_figures
from rlhf.models.checkpoint.context import RoomConfig
from rlhf.report.drawing.tables import as_markdown
from rlhf.report.pages.red_team import round_table
from rlhf.rewards.specs import Reward
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import Sampler, SamplingParams
from rlhf.sampling.room import with_room
from rlhf.sampling.source import AnsweringPolicy
from rlhf.stage import InputPath, inputs_of
from rlhf.terminal import disarmed
from rlhf.training.accelerator import make_accelerator


@dataclass(frozen=True, kw_only=True)
class RedTeamConfig(RoomConfig):
    """One session.

    Args:
        policy: which is tried (docs/policies.md).
        log: JSONL file to append to.
        round: name of the round, e.g. the model's version.
        person: who tries; a name of your choice.
        prompts: file or hub name of prompts; null: typed in.
        judge: of a file's answers: refusals (an answer that does not refuse is a violation), safety, checker or scorer,
            each with its option below.
        refusals: `rules`, a detector.json of recipes/evaluation/refusal_detector.py, or `package.module:attribute`.
        safety: reward-model folder, or import path of your own; a score after the sigmoid below 0.5 is a violation.
        checker: import path of a function of conversations that gives one bool each: it is a violation.
        scorer: import path of a gold scorer's class, called with `world`.
        world: the file or folder that the scorer reads.
        sampling: how answers are drawn.
        seed: added to sampling.seed.
        chat_template_kwargs: variables of the policy's chat template; see docs/templates.md.
    """

    policy: AnsweringPolicy
    log: Path
    round: str
    person: str = "file"
    prompts: DataSource | None = None
    judge: str = "refusals"
    refusals: Refusals = "rules"
    safety: Reward | None = None
    checker: str | None = None
    scorer: str | None = None
    world: InputPath | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("round", "person"):
            if not getattr(self, name).strip():
                raise InputError(f"{name}: must not be empty")
        if self.judge not in ("refusals", "safety", "checker", "scorer"):
            raise InputError(f"judge: must be refusals, safety, checker or scorer, got {self.judge!r}")
        if getattr(self, self.judge) is None:
            raise InputError(f"judge: {self.judge} needs its option, --{self.judge}")
        if (self.scorer is None) != (self.world is None):
            raise InputError("scorer, world: a gold scorer needs its world; name both or neither")


def main(config: RedTeamConfig) -> None:
    give_kwargs(config.chat_template_kwargs)
    inputs = inputs_of(config)
    if config.log.exists():
        read_log(config.log)  # a broken log is named before anybody's work
    accelerator = make_accelerator(seed=config.seed)
    typed = config.prompts is None and config.too_long == "cut"  # nobody has looked at what is typed
    sampler = open_sampler(config.policy, accelerator.device, too_long=None if typed else config.too_long)
    if config.prompts is None:
        talk(config, sampler, sys.stdin, sys.stdout)
    else:
        from_file(config, inputs, sampler, accelerator)
    if accelerator.is_main_process:  # the one that wrote the log: it is done
        rounds = round_figures(read_log(config.log)) if config.log.exists() else []
        print(as_markdown(round_table(rounds)))


def talk(config: RedTeamConfig, sampler: Sampler, typed: TextIO, shown: TextIO) -> None:
    """A session: prompts from `typed`, answers to `shown`, each kept in the log as soon as it is judged."""
    messages: Conversation = []
    started, number = time.monotonic(), 0
    while True:
        print("> ", end="", file=shown, flush=True)
        line = typed.readline()
        if not line:
            return
        if not line.strip():
            messages = []
            print("(a new dialogue)", file=shown)
            continue
        asked: Conversation = [*messages, {"role": "user", "content": line.strip()}]
        params = config.sampling.seeded(config.seed)
        try:
            answer = sampler.sample([asked], 1, params, keys=[number])[0][0].text
        except InputError as error:  # a dialogue that fills the context
            print(f"({error}; a new dialogue)", file=shown)
            messages = []
            continue
        print(f"{disarmed(answer)}\nviolation? [y/N] ", end="", file=shown, flush=True)
        verdict = typed.readline()
        if not verdict:  # the session ends before anybody judged this answer
            return
        violation = verdict.strip().lower() in ("y", "yes")
        seconds, started, number = round(time.monotonic() - started, 1), time.monotonic(), number + 1
        append(config.log, Attempt(config.round, config.person, asked, answer, violation, config.person, seconds))
        messages = [*asked, {"role": "assistant", "content": answer}] if answer else []


def from_file(config: RedTeamConfig, inputs: Mapping[str, Path], sampler: Sampler, accelerator: Any) -> None:
    """Every prompt of the file once, judged by `config.judge`; nobody's time is measured."""
    judge = load_judges(
        config.refusals,
        config.safety,
        None,
        config.checker,
        config.scorer,
        config.world,
        accelerator,
        config.too_long,
    )
    asked, _ = with_room(load_prompts(config.prompts or ""), inputs, config.sampling.max_new_tokens, config.too_long)
    prompts = [SafetyPrompt(prompt, "unsafe") for prompt in asked]
    params = config.sampling.seeded(config.seed)
    judged = answer_and_judge(sampler, prompts, judge, params, 1, accelerator)
    names = {"refusals": "refusal detector", "safety": "safety reward model", "checker": "checker", "scorer": "gold"}
    violation, _ = judges(judged, 0.5)[names[config.judge]]
    for one in judged if accelerator.is_main_process else []:
        said = Attempt(
            config.round,
            config.person,
            one.answer.messages,
            one.answer.answer,
            bool(violation(one)),
            names[config.judge],
        )
        append(config.log, said)


if __name__ == "__main__":
    run_recipe(main, RedTeamConfig)
