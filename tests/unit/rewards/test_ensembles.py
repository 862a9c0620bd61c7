"""An ensemble is the members' mean less their disagreement, named by a file wherever a reward goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.ensembles import RewardEnsemble
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.loading import load_reward
from rlhf.rewards.specs import reward_files

TALKS: list[Conversation] = [
    [{"role": "user", "content": "what is the river of velda ?"}, {"role": "assistant", "content": answer}]
    for answer in ("mora", "a goat", "ask a doctor", "sure")
]
MEMBERS = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 4.0, 0.0, 4.0]), torch.tensor([1.0, 0.0, 3.0, -2.0])]


def constant(scores: torch.Tensor):
    return lambda conversations: scores


@pytest.fixture
def checkpoints(tiny_policy_path: Path, tmp_path: Path) -> list[Path]:
    for seed in range(3):
        model = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=seed)
        model.save(tmp_path / f"r{seed}", load_tokenizer(tiny_policy_path))
    return [tmp_path / f"r{seed}" for seed in range(3)]


def ensemble_file(folder: Path, text: str) -> Path:
    (folder / "ensemble.yaml").write_text(text)
    return folder / "ensemble.yaml"


def test_mean_less_standard_deviation_by_hand() -> None:
    members = [constant(scores) for scores in MEMBERS]
    assert RewardEnsemble(members)(TALKS).tolist() == pytest.approx([1.0, 2.0, 2.0, 2.0])
    spread = [0.0, (8 / 3) ** 0.5, 2**0.5, 8**0.5]
    assert RewardEnsemble(members).disagreement(TALKS).tolist() == pytest.approx(spread)
    wary = RewardEnsemble(members, uncertainty_weight=0.5)(TALKS)
    assert wary.tolist() == pytest.approx([1.0 - 0.5 * spread[0], *(2.0 - 0.5 * s for s in spread[1:])])
    assert wary.dtype == torch.float32
    rewards = GatedReward(RewardEnsemble(members, 0.5), constant(torch.ones(4)))(TALKS, ["helpfulness"] * 4)
    assert torch.equal(rewards.reward, wary)


def test_a_member_s_bad_scores_are_refused_by_its_name() -> None:
    members = [constant(MEMBERS[0]), constant(torch.tensor([0.0, float("nan"), 0.0, 0.0]))]
    with pytest.raises(InputError, match=r"member 1 of the ensemble \(<lambda>\): score 1 is nan"):
        RewardEnsemble(members)(TALKS)


def test_a_file_names_an_ensemble_of_checkpoints_and_own_functions(
    checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "length_of_the_test.py").write_text(
        "import torch\ndef length(talks): return torch.tensor([float(len(t[-1]['content'])) for t in talks])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    members = [str(checkpoints[0]), str(checkpoints[1]), "length_of_the_test:length"]
    file = ensemble_file(tmp_path, json.dumps({"members": members, "uncertainty_weight": 0.25}))
    stacked = torch.stack([load_reward(member)(TALKS) for member in members])
    want = stacked.mean(0) - 0.25 * stacked.std(0, correction=0)
    torch.testing.assert_close(load_reward(file)(TALKS), want)
    files = reward_files(helpfulness=file, safety="length_of_the_test:length", referee=None)
    code = {name: Path("length_of_the_test.py") for name in ("helpfulness.2.code", "safety.code")}
    assert files == {"helpfulness": file, "helpfulness.0": checkpoints[0], "helpfulness.1": checkpoints[1], **code}
    assert reward_files(safety=checkpoints[2]) == {"safety": checkpoints[2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: [{a}]", "members: an ensemble has two or more, got 1"),
        ("members: [{a}, other.yaml]", r"other\.yaml is an ensemble itself"),
        ("members: [{a}, {a}]\nuncertainty_weight: -1", "uncertainty_weight: must be 0 or above"),
        ("members: [{a}, {a}]\nweight: 1", "weight"),
        ("uncertainty_weight: 1", "members"),
        ("members: [{a}", r"ensemble\.yaml"),
    ],
)
def test_a_bad_file_gets_one_sentence(text: str, message: str, checkpoints: list[Path], tmp_path: Path) -> None:
    file = ensemble_file(tmp_path, text.replace("{a}", str(checkpoints[0])))
    for read in (load_reward, lambda spec: reward_files(helpfulness=spec)):
        with pytest.raises(InputError, match=message) as caught:
            read(file)
        assert str(caught.value).startswith(f"ensemble {file}: ") and "\n" not in str(caught.value)


def test_missing_files_and_policies_are_named(tiny_policy_path: Path, checkpoints: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"helpfulness: none\.yaml does not exist"):
        reward_files(helpfulness="none.yaml")
    with pytest.raises(InputError, match=r"reward: none\.yaml does not exist"):
        load_reward("none.yaml")
    file = ensemble_file(tmp_path, f"members: [{checkpoints[0]}, {tmp_path / 'nowhere'}]")
    with pytest.raises(InputError, match=r"helpfulness\.1: .*nowhere does not exist"):
        reward_files(helpfulness=file)
    file = ensemble_file(tmp_path, f"members: [{checkpoints[0]}, {tiny_policy_path}]")
    with pytest.raises(InputError, match=r"has no score\.weight"):
        reward_files(helpfulness=file)


@pytest.mark.parametrize(
    ("given", "what", "named"),
    [
        ("my_rewards.brevity", "does not exist", "my_rewards:brevity"),
        ("own/brief.py", "is no reward model", "own.brief:FUNCTION"),
    ],
)
def test_a_function_named_otherwise_than_by_a_colon(given: str, what: str, named: str) -> None:
    """Whoever wrote a dot was told that no such file exists."""
    with pytest.raises(InputError) as caught:
        reward_files(helpfulness=given)
    said = f"helpfulness: {given} {what}; a function of your own is named {named}"
    assert str(caught.value) == said


def test_the_code_of_a_member_is_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ensemble's file names it, which did not change with it."""
    monkeypatch.chdir(tmp_path)
    Path("member_code.py").write_text("def short(conversations): ...\n")
    file = ensemble_file(tmp_path, "members: [member_code:short, rlhf.rewards.examples:Brevity]")
    found = reward_files(helpfulness=file)
    assert found == {"helpfulness": file, "helpfulness.0.code": Path("member_code.py")}
