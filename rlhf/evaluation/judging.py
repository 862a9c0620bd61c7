"""Who judges answers: reward models through the gate, a referee, judge models, a gold scorer that knows the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.configuration import to_dict
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.scorers import VERDICT_FIELDS, GoldScorer
from rlhf.models.checkpoint.context import TooLong
from rlhf.rewards.distributed import answer_scores, score_answers
from rlhf.sampling.chat import ServerConfig
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.server import ServerSampler
from rlhf.stage import package_versions
from rlhf.stage.record import read_stage_file

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rlhf.conversation import Conversation
    from rlhf.rewards.gate import GatedReward
    from rlhf.rewards.protocol import RewardFunction
    from rlhf.stage import Stage


def judgements(
    judge: ServerConfig,
    who: str,
    params: SamplingParams,
    accelerator: Accelerator,
    shards: Path,
    requests: Sequence[Conversation],
) -> list[str]:
    """A judge model's text for each request; empty where its server refuses one. All processes call it with the same.

    Args:
        judge: its server.
        who: the field that names it, for messages.
        params: how its texts are drawn.
        shards: folder that keeps them as they come.
    """
    sampler = ServerSampler(judge, who=who, passes_over=True)
    return [text.text for (text,) in sample_distributed(sampler, requests, 1, params, accelerator, shards=shards)]


def with_gold(answers: Sequence[Answer], scorer: GoldScorer) -> list[Answer]:
    """The answers with the scorer's verdicts."""
    return [replace(answer, gold=_verdict(scorer, answer)) for answer in answers]


def _verdict(scorer: GoldScorer, answer: Answer) -> dict[str, Any]:
    verdict = scorer.judge(answer.conversation)
    missing = [name for name in VERDICT_FIELDS if not hasattr(verdict, name)]
    if missing:
        raise InputError(f"scorer: its verdict on {answer.prompt_id} lacks {', '.join(missing)}")
    if is_dataclass(verdict) and not isinstance(verdict, type):
        return asdict(verdict)
    return {name: getattr(verdict, name) for name in VERDICT_FIELDS}


def with_rewards(answers: Sequence[Answer], reward: GatedReward, accelerator: Accelerator) -> list[Answer]:
    """The answers with the reward models' scores and the gate's choice; `safety` stays None without a safety model.

    An answer that a reward model saw cut is not finished where `reward.too_long` is "unfinished". All processes call it
    with the same.
    """
    scores = score_answers([a.prompt for a in answers], [a.answer for a in answers], reward, accelerator)
    safety = [None] * len(answers) if scores.safety is None else scores.safety.tolist()
    columns = (scores.helpfulness.tolist(), safety, scores.reward.tolist(), scores.too_long.tolist())
    return [
        replace(a, helpfulness=h, safety=s, reward=r, finished=reward.counts_as_finished(a.finished, too_long))
        for a, h, s, r, too_long in zip(answers, *columns, strict=True)
    ]


def scored_alike(stage: Stage, config: Any, evaluation: Path) -> bool:
    """Whether an evaluation's answers carry the scores that this stage's reward models would give them again.

    Its record says so: the same folders by their content, the same gate, precision and packages. Reward functions by
    import path and ensembles are asked again. The main process alone should ask (`Stage.agreed`).

    Args:
        config: the stage's, with `helpfulness`, `safety`, `gate` and `too_long`.
        evaluation: the other's folder.
    """
    record = read_stage_file(evaluation)
    named = [stage.inputs.get(name) for name in ("helpfulness", "safety") if getattr(config, name) is not None]
    if record is None or not all(path is not None and path.is_dir() for path in named):
        return False
    judges, options = ("helpfulness", "safety", "gate"), to_dict(config)
    theirs = {name: read["digest"] for name, read in record["inputs"].items() if name.partition(".")[0] in judges}
    ours = {name: digest for name, digest in stage.digests.items() if name.partition(".")[0] in judges}
    return (
        ours == theirs
        and all(record["config"].get(name) == options[name] for name in ("gate", "too_long"))
        and record.get("launch", {}).get("mixed_precision") == getattr(stage.processes, "mixed_precision", None)
        and record.get("packages") == package_versions()
    )


def with_referee(answers: Sequence[Answer], referee: RewardFunction, accelerator: Accelerator) -> list[Answer]:
    """The answers with the referee's scores. All processes call it with the same."""
    return with_scores(answers, "referee", referee, accelerator)


def with_scores(
    answers: Sequence[Answer],
    field: Literal["referee", "helpfulness", "safety"],
    reward: RewardFunction,
    accelerator: Accelerator,
    too_long: TooLong = "cut",
) -> list[Answer]:
    """The answers with one reward function's scores as `field`. All processes call it with the same.

    Args:
        too_long: what becomes of an answer that its context does not hold.
    """
    asked = [a.prompt for a in answers], [a.answer for a in answers]
    scores, unfinished = answer_scores(*asked, reward, field, accelerator, too_long)
    rows = zip(answers, scores.tolist(), unfinished, strict=True)
    return [replace(a, **{field: score}, finished=a.finished and not cut) for a, score, cut in rows]
