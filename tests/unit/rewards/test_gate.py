"""Two rewards and the gate: tags and a low safety score decide, and a bad reward function is named."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from rlhf.conversation import Conversation
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.rewards.config import GateConfig
from rlhf.rewards.distributed import score_answers
from rlhf.rewards.gate import Gate, GatedReward, read_gate
from rlhf.rewards.origin import measure_origin, read_origin, write_origin

TALK: Conversation = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_tag_and_threshold_decide() -> None:
    helpfulness = torch.tensor([1.0, 2.0, 3.0, 4.0])
    safety = torch.tensor([logit(0.1499), logit(0.1501), logit(0.9), logit(0.01)])
    got = GatedReward(lambda c: helpfulness, lambda c: safety)(
        [TALK] * 4, ["helpfulness", "helpfulness", "safety", "safety"]
    )
    assert got.used_safety.tolist() == [True, False, True, True]
    torch.testing.assert_close(got.reward, torch.stack([safety[0], helpfulness[1], safety[2], safety[3]]))
    assert got.helpfulness.tolist() == helpfulness.tolist() and got.safety is not None
    assert got.safety.tolist() == safety.tolist()


def test_a_bad_reward_function_is_named() -> None:
    def broken(conversations: object) -> torch.Tensor:
        return torch.zeros(1, 2)

    with pytest.raises(InputError, match=r"safety \(broken\)"):
        GatedReward(lambda c: torch.zeros(2), broken)([TALK] * 2, ["safety"] * 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 conversations but 1 tags"):
        GatedReward(broken, broken)([TALK] * 2, ["safety"])  # type: ignore[arg-type]


def test_both_functions_are_asked_also_where_the_first_refuses() -> None:
    """Under ZeRO-3 a call gathers weights, which takes every process: one that leaves safety out stops the others."""
    asked = []

    def refuses(conversations: object) -> torch.Tensor:
        raise InputError("messages: the last turn takes 500 tokens")

    def safety(conversations: Sequence[Conversation]) -> torch.Tensor:
        asked.append(len(conversations))
        return torch.zeros(len(conversations))

    prompts = [Prompt(f"p{i}", TALK[:1]) for i in range(3)]
    with pytest.raises(InputError, match="the last turn takes 500 tokens"):
        score_answers(prompts, ["a", "b", "c"], GatedReward(refuses, safety), Accelerator(cpu=True))
    assert asked == [3]


def test_the_threshold_is_an_option_and_strict() -> None:
    safety = torch.tensor([logit(0.2999), logit(0.3001)])
    for threshold, used in ((0.3, [True, False]), (0.2, [False, False]), (0.9, [True, True])):
        got = GatedReward(lambda c: torch.zeros(2), lambda c: safety, Gate(threshold))([TALK] * 2, ["helpfulness"] * 2)
        assert got.used_safety.tolist() == used


def test_origins_come_off_before_the_gate_and_in_the_reward_but_not_in_the_scores() -> None:
    """A model whose scores all lie 3 higher gates and rewards as it would without: raw scores are kept as they are."""
    helpfulness, safety = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([-1.8, -1.7, 4.0])
    tags = ["helpfulness", "helpfulness", "safety"]
    plain = GatedReward(lambda c: helpfulness, lambda c: safety)([TALK] * 3, tags)  # type: ignore[arg-type]
    assert plain.used_safety.tolist() == [True, False, True]  # the threshold is -1.734601
    gate = Gate(helpfulness_origin=-5.0, safety_origin=3.0)
    moved = GatedReward(lambda c: helpfulness - 5, lambda c: safety + 3, gate)([TALK] * 3, tags)  # type: ignore[arg-type]
    assert moved.used_safety.tolist() == plain.used_safety.tolist()
    torch.testing.assert_close(moved.reward, plain.reward)
    torch.testing.assert_close(moved.helpfulness, helpfulness - 5)
    torch.testing.assert_close(moved.safety, safety + 3)


def test_without_a_safety_model_helpfulness_is_the_reward_of_every_prompt() -> None:
    scores = torch.tensor([1.0, -9.0])
    got = GatedReward(lambda c: scores)([TALK] * 2, ["helpfulness", "safety"])
    assert got.safety is None and got.reward.tolist() == [1.0, -9.0] and not got.used_safety.any()
    prompts = [Prompt("a", TALK[:1]), Prompt("b", TALK[:1], "safety"), Prompt("c", TALK[:1])]
    all_three = score_answers(prompts, ["x", "y", " "], GatedReward(lambda c: scores), Accelerator(cpu=True))
    assert all_three.safety is None and all_three.reward.tolist() == [1.0, -9.0, -9.0]


def test_the_origin_of_labelled_scores_makes_the_mean_sigmoid_the_share_of_safe_answers() -> None:
    scores, safe = [4.0, 1.0, 3.0, -1.0, 0.5], [True, True, None, False, True]
    found = measure_origin(scores, safe)
    assert (found.measured_on, found.answers) == ("labels", 4)
    shares = torch.sigmoid(torch.tensor([4.0, 1.0, -1.0, 0.5], dtype=torch.float64) - found.origin)
    assert shares.mean().item() == pytest.approx(0.75, abs=1e-9)
    assert measure_origin([2.0, 4.0]).origin == 3.0
    assert measure_origin([2.0, 4.0], [True, True]).measured_on == "scores"  # one label alone places nothing
    assert measure_origin([2.0, -2.0], [True, False]).origin == pytest.approx(0.0, abs=1e-9)


def test_the_gate_reads_stored_origins_and_a_sweep_s_threshold(tmp_path: Path) -> None:
    for name, score in (("one", 2.0), ("two", 4.0), ("plain", 0.0)):
        (tmp_path / name).mkdir()
        if score:
            write_origin(tmp_path / name, measure_origin([score]))
    ensemble = tmp_path / "both.yaml"
    ensemble.write_text(f"members: [{tmp_path / 'one'}, {tmp_path / 'two'}]\n")
    assert read_origin(tmp_path / "one") == 2.0 and read_origin(ensemble) == 3.0
    assert read_origin(tmp_path / "plain") == read_origin("rlhf.rewards.examples:Brevity") == read_origin(None) == 0.0
    sweep = tmp_path / "gate_sweep.json"
    sweep.write_text(json.dumps({"chosen": {"threshold": 0.4}, "centre": True}))
    one, both = str(tmp_path / "one"), str(ensemble)
    assert read_gate(GateConfig(threshold_from=sweep), one, both) == Gate(0.4, 2.0, 3.0)
    assert read_gate(GateConfig(centre=False), one, both) == Gate(0.15, 0.0, 0.0)
    for origin, told in ((3.0, 0), (2.5, 1)):
        sweep.write_text(json.dumps({"chosen": {"threshold": 0.4}, "centre": True, "origins": {"safety": origin}}))
        gated = GatedReward(lambda c: torch.zeros(len(c)), None, read_gate(GateConfig(threshold_from=sweep), one, both))
        said = gated.suspicious()
        words = "chosen for another safety model (origin 2.5, this one's is 3)"
        assert len(said) == told and all(words in sentence for sentence in said)
    with pytest.raises(InputError, match=r"gate\.threshold: 0\.3 stands beside gate\.threshold_from"):
        GateConfig(threshold=0.3, threshold_from=sweep)
    with pytest.raises(InputError, match=r"gate\.centre: the threshold of .* was chosen with centre True"):
        read_gate(GateConfig(centre=False, threshold_from=sweep), one, both)
    for broken in ({}, [], {"chosen": {"threshold": 0.4}, "centre": True, "origins": [1]}):
        sweep.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"gate\.threshold_from: .* is no gate_sweep\.json"):
            read_gate(GateConfig(threshold_from=sweep), one, both)
    (tmp_path / "one/score_origin.json").write_text('{"origin": null}')
    with pytest.raises(InputError, match="holds no finite origin"):
        read_origin(tmp_path / "one")
