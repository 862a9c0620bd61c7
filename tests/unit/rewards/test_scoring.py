"""Scores independent of order, batch and padding; user functions by import path; bad scores and folders refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel, RewardOutput
from rlhf.rewards.ensembles import RewardEnsemble
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.loading import load_reward
from rlhf.rewards.scoring import RewardModelFunction, check_scores
from rlhf.rewards.suspicion import suspicious_scoring


def talk(answer: str, question: str = "what is the river of velda ?") -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


TALKS = [talk("mora"), talk("I cannot help with that because it is not safe to try"), talk("sure " * 20), talk("mora")]


@pytest.fixture(scope="module")
def checkpoint(tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0).save(folder, load_tokenizer(tiny_policy_path))
    return folder


def test_scores_do_not_depend_on_order_batch_or_company(checkpoint: Path) -> None:
    reward = load_reward(checkpoint)
    want = torch.cat([reward([c]) for c in TALKS])
    assert want.shape == (4,) and want.dtype == torch.float32 and want[0] == want[3]
    assert (want[:3].unique().numel()) == 3
    torch.testing.assert_close(reward(TALKS), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(reward(TALKS[::-1]).flip(0), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(load_reward(checkpoint, batch_tokens=1)(TALKS), want, atol=1e-4, rtol=0)


def test_what_it_had_to_cut_is_counted_over_all_calls_and_said(checkpoint: Path) -> None:
    whole = load_reward(checkpoint)
    assert isinstance(whole, RewardModelFunction)
    (shortest,) = whole.renderer.dialogues(TALKS[:1])
    renderer = Renderer(whole.renderer.tokenizer, max_length=len(shortest.input_ids), cut=True)
    short = RewardModelFunction(whole.model, renderer)
    for talks in (TALKS[:1], TALKS[1:3]):
        both = GatedReward(RewardEnsemble([whole, short, lambda asked: torch.zeros(len(asked))]), whole)
        both(talks, ["helpfulness"] * len(talks))
    assert (short.scored, short.cut) == (3, 2) and (whole.scored, whole.cut) == (6, 0)
    sentence = "helpfulness scored 67% of its dialogues cut to its context"
    (said,) = both.suspicious()
    assert said.startswith(sentence) and suspicious_scoring(helpfulness=short, safety=None) == [said]


def test_in_step_it_makes_as_many_passes_as_the_process_that_needs_most(checkpoint: Path) -> None:
    """Three where it has two batches; what fails before the first pass is told to the others, who wait for none."""
    reward, told = load_reward(checkpoint, batch_tokens=64), list[tuple[int, str | None]]()
    assert isinstance(reward, RewardModelFunction)
    want = reward(TALKS)
    passes = list[bool]()

    def run(**batch: Any) -> RewardOutput:
        passes.append(torch.is_inference_mode_enabled() or torch.is_grad_enabled())
        found: RewardOutput = reward.model(**batch)
        return found

    def agree(count: int, failure: str | None) -> int:
        told.append((count, failure))
        if failure is not None:
            raise InputError(failure)
        return count + 1

    reward.run_in_step(run, agree)
    torch.testing.assert_close(reward(TALKS), want, atol=1e-4, rtol=0)
    assert len(passes) == told[0][0] + 1 > 2 and not any(passes)
    with pytest.raises(InputError, match="the last message must be the assistant"):
        reward([[{"role": "user", "content": "hello"}]])
    assert told[1:] == [(0, told[1][1])] and "the last message" in str(told[1][1])
    passes.clear()
    assert reward([]).shape == (0,) and len(passes) == 1, "who has nothing goes along"


def test_frozen_heads_stay_float32_where_the_weights_are_cast(checkpoint: Path) -> None:
    """As ZeRO-3 casts what it divides: scores in bfloat16 would have ties among a prompt's answers."""
    reward = load_reward(checkpoint)
    assert isinstance(reward, RewardModelFunction)
    want = reward(TALKS)
    reward.model.freeze_heads()
    assert torch.equal(reward(TALKS), want)
    for parameter in reward.model.parameters():
        parameter.data = parameter.data.bfloat16()
    assert reward.model.score_head.weight.dtype == torch.float32
    got = reward(TALKS)
    assert not torch.equal(got, got.bfloat16().float())
    torch.testing.assert_close(got, want, atol=0.05, rtol=0)


def test_many_answers_to_a_prompt_share_it_and_score_as_alone(checkpoint: Path) -> None:
    history = [*talk("it is safe", "please answer in one word"), {"role": "user", "content": "how do I paint ?"}]
    answers = ["mora", "sure " * 9, "I cannot", "", "I cannot help with that", "goat " * 4]
    talks = [[*history, {"role": "assistant", "content": a}] for a in answers] + [talk(a) for a in answers] + TALKS
    reward = load_reward(checkpoint)
    assert isinstance(reward, RewardModelFunction)
    tokens = []
    embedding = reward.model.model.base_model.embed_tokens
    embedding.register_forward_hook(lambda _module, args, _output: tokens.append(args[0].numel()))
    want = torch.cat([reward([conversation]) for conversation in talks])
    alone = sum(tokens)
    spent = []
    for batch_tokens in (1, 60, 150, 10_000):
        tokens.clear()
        reward.batch_tokens = batch_tokens
        torch.testing.assert_close(reward(talks[::-1]).flip(0), want, atol=1e-4, rtol=0)
        spent.append(sum(tokens))
    assert spent == sorted(spent, reverse=True) and spent[-1] < alone / 2
    reward.model.shares_prefixes = False
    torch.testing.assert_close(reward(talks), want, atol=1e-4, rtol=0)


def test_scores_are_the_models_on_the_rendered_dialogue(checkpoint: Path) -> None:
    reward = load_reward(checkpoint)
    assert isinstance(reward, RewardModelFunction)
    ids = torch.tensor([reward.renderer.dialogue(TALKS[1]).input_ids])
    with torch.no_grad():
        want = reward.model(ids, torch.ones_like(ids)).score
    torch.testing.assert_close(reward(TALKS[1:2]), want, atol=1e-5, rtol=0)


def test_the_reward_models_own_template_renders(checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = RewardModel.load(checkpoint), load_tokenizer(checkpoint)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ bos_token if loop.first }}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    model.save(tmp_path / "c", tokenizer)
    other = load_reward(tmp_path / "c")
    assert not torch.allclose(other(TALKS), load_reward(checkpoint)(TALKS), atol=1e-4)


def test_no_conversations_no_scores_and_train_mode_comes_back(checkpoint: Path) -> None:
    reward = load_reward(checkpoint)
    reward.model.train()
    assert reward([]).shape == (0,)
    reward(TALKS)
    assert reward.model.training and not reward(TALKS).requires_grad


def test_own_rewards_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_rewards.py").write_text(
        "import torch\n"
        "class Brevity:\n"
        "    def __call__(self, conversations):\n"
        "        return torch.tensor([-float(len(c[-1]['content'])) for c in conversations])\n"
        "def constant(conversations):\n"
        "    return torch.zeros(len(conversations))\n"
        "class Exits:\n"
        "    def __init__(self): raise SystemExit(0)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert load_reward("my_own_rewards:Brevity")(TALKS[:2]).tolist() == [-4.0, -53.0]
    assert load_reward("my_own_rewards:constant")(TALKS).tolist() == [0.0] * 4
    for spec, message in [
        ("my_own_rewards:number", "is a int"),
        ("my_own_rewards:Missing", "AttributeError"),
        ("my_own_rewards:Exits", r"my_own_rewards:Exits\(\) fails \(SystemExit: 0, .*my_own_rewards.py:8\)"),
        ("no_such_module_anywhere:x", "ModuleNotFoundError"),
    ]:
        with pytest.raises(InputError, match=message):
            load_reward(spec)


def test_a_policy_or_a_missing_folder_is_refused(tiny_policy_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no score\.weight"):
        load_reward(tiny_policy_path)
    with pytest.raises(InputError, match="is not a folder"):
        load_reward(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], "returns a tensor of shape .2,., got list"),
        (torch.zeros(2, 1), r"\(2,\), got \(2, 1\)"),
        (torch.zeros(3), r"got \(3,\)"),
        (torch.tensor([1.0, float("nan")]), "score 1 is nan, and 1 of 2"),
        (torch.tensor([float("inf"), 0.0]), "score 0 is inf"),
        (torch.zeros(2, dtype=torch.complex64), "returns real numbers, e.g. float32, got a tensor of torch.complex64"),
        (torch.zeros(2, device="meta"), "got a tensor without values"),
        (torch.zeros(2).to_sparse(), "torch.sparse_coo"),
    ],
)
def test_bad_scores_are_refused_by_name(scores: object, message: str) -> None:
    with pytest.raises(InputError, match=f"mine: .*{message}"):
        check_scores(scores, 2, "mine")


def test_good_scores_become_float32() -> None:
    got = check_scores(torch.tensor([1, 2]), 2, "mine")
    assert got.dtype == torch.float32 and got.tolist() == [1.0, 2.0]
