from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf.configuration import parse_config, run_recipe
from rlhf.conversation import Renderer
from rlhf.data.rows import Completion
from rlhf.errors import InputError
from rlhf.metrics import read_metrics
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rejection.figures import RoundFigures
from rlhf.rejection.pool import read_completions, read_pool
from rlhf.rewards.loading import load_reward
from rlhf.sampling.in_process import InProcessSampler

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import rejection_sampling
from rejection_sampling import RejectionSamplingConfig

if TYPE_CHECKING:
    from chat_server import ChatServer

REWARDS = """
import torch

def brevity(conversations):
    return torch.tensor([2.0 - len(c[-1]["content"]) / 50 for c in conversations])

def letters(conversations):
    return torch.tensor([float(sum(ch.isalpha() for ch in c[-1]["content"])) / 10 for c in conversations])

def sometimes(conversations):
    return torch.tensor([float("nan") if "a" in c[-1]["content"] else 0.0 for c in conversations])

def broken(conversations):
    return torch.zeros(len(conversations), 1)
"""


REJECTION = {"early_rejection.at": "[6, 12]", "early_rejection.drop": 0.5, "num_samples": 6}


@pytest.fixture
def run(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run one version; returns its folder."""
    (tmp_path / "rewards_of_the_test.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}], "domain": domain}
        for i, domain in enumerate(["helpfulness", "safety"] * 6)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(version: str, **options: object) -> Path:
        given = {
            "output": tmp_path / version,
            "policy": tiny_policy_path,
            "fine_tune_from": tiny_policy_path,
            "prompts": prompts,
            "helpfulness": "rewards_of_the_test:letters",
            "safety": "rewards_of_the_test:brevity",
            "version": version,
            "num_samples": 5,
            "sampling.max_new_tokens": 150,
            "sampling.top_k": 40,
            "finetuning.optimizer.learning_rate": 0.003,
            **options,
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        rejection_sampling.main(parse_config(RejectionSamplingConfig, arguments))
        return tmp_path / version

    return start


def test_two_versions(run, tiny_policy_path: Path, tmp_path: Path) -> None:
    v1 = run("v1", seed=1)
    rows = read_completions(v1 / "completions.parquet")
    assert [(row.prompt_id, row.index) for row in rows] == [(f"p{p}", i) for p in range(12) for i in range(5)]
    assert {row.version for row in rows} == {"v1"}
    figures = json.loads((v1 / "selection.json").read_text())
    assert set(figures) == RoundFigures.__required_keys__ | RoundFigures.__optional_keys__
    selected = [json.loads(line) for line in (v1 / "selected.jsonl").read_text().splitlines()]
    assert 0 < figures["selected"] == len(selected) == 12 - figures["prompts_without_answer"]
    for row in selected:
        finished = [c for c in rows if c.prompt_id == row["id"] and c.finished and c.text]
        assert row["reward"] == max(c.reward for c in finished)
        assert row["messages"][-1]["content"] in {c.text for c in finished if c.reward == row["reward"]}
        if int(row["id"][1:]) % 2:
            assert all(c.reward == c.safety for c in finished)
    assert figures["max_reward"] >= figures["mean_reward"]
    assert [point["k"] for point in figures["curve"]] == [1, 2, 3, 4, 5]
    assert len(read_metrics(v1 / "metrics.jsonl")) == 2
    before = AutoModelForCausalLM.from_pretrained(tiny_policy_path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(v1 / "checkpoint").state_dict()
    assert any(not before[name].equal(after[name]) for name in before)

    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "v1.parquet").symlink_to(v1 / "completions.parquet")
    chats = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "sure"}]
    chats.write_text(json.dumps({"messages": chat}) + "\n")
    v2 = run("v2", policy=v1 / "checkpoint", pool=pool, sft_data=chats, seed=2)
    figures = json.loads((v2 / "selection.json").read_text())
    assert figures["candidates_by_version"] == {"v1": 60, "v2": 60}
    assert set(figures["selected_by_version"]) <= {"v1", "v2"} and figures["selected_by_version"]["v1"] > 0
    assert {row.version for row in read_completions(v2 / "completions.parquet")} == {"v2"}
    with pytest.raises(InputError, match="v1 is in the pool already"):
        run("v1", pool=pool, output=tmp_path / "again")


def test_a_control_chooses_among_the_answers_that_were_drawn_and_draws_none(run, tmp_path: Path) -> None:
    """What choosing by reward is worth: the same answers, and any of the finished ones in place of the best."""
    kept: dict[str, object] = {"seed": 1, "selection.missing_end_penalty": 0.0, "finetuning.max_length": 100}
    best = run("v1", **kept)
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "v1.parquet").symlink_to(best / "completions.parquet")
    random = run("v1_random", pool=pool, num_samples=0, **kept, **{"selection.rule": "random"})
    figures, of_best = (json.loads((folder / "selection.json").read_text()) for folder in (random, best))
    assert (figures["version"], figures["num_samples"]) == ("v1_random", 0) and "curve" not in figures
    assert figures["candidates_by_version"] == figures["pool"] == {"v1": 60}
    for name in ("prompts", "mean_length", "finished_share", "selected", "left_out", "temperature"):
        assert figures[name] == of_best[name], name
    assert figures["mean_reward"] == pytest.approx(of_best["mean_reward"], abs=1e-5)
    assert figures["selected_mean_reward"] < of_best["selected_mean_reward"]
    assert read_completions(random / "completions.parquet") == []
    again = run("v1_best", pool=pool, num_samples=0, **kept)
    assert (again / "selected.jsonl").read_text() == (best / "selected.jsonl").read_text(), (
        "the same rule, the same rows"
    )
    (tmp_path / "others.jsonl").write_text('{"id": "q", "messages": [{"role": "user", "content": "who ?"}]}\n')
    for options, words in (
        ({"prompts": tmp_path / "others.jsonl", "pool": pool}, r"pool: .* holds no answer to these prompts"),
        ({}, "num_samples: 0 draws no answer, and there is no pool"),
    ):
        with pytest.raises(InputError, match=words):
            run("v9", num_samples=0, **options)


def test_the_same_seed_gives_the_same_checkpoint(run, tmp_path: Path) -> None:
    one, two = run("v1", seed=3), run("v1", seed=3, output=tmp_path / "two", **{"policy.rows": 7})
    assert (one / "selected.jsonl").read_text() == (two.parent / "two" / "selected.jsonl").read_text()
    weights = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "checkpoint").state_dict() for name in ("v1", "two")
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_an_ensemble_goes_where_a_reward_model_goes(run, tiny_policy_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy_path)
    RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0).save(tmp_path / "r0", tokenizer)
    file = tmp_path / "wary.json"
    members = [str(tmp_path / "r0"), "rewards_of_the_test:letters"]
    file.write_text(json.dumps({"members": members, "uncertainty_weight": 2.0}))
    v1 = run("v1", helpfulness=file, **{"sampling.max_new_tokens": 90})
    row = next(row for row in read_completions(v1 / "completions.parquet") if row.text.strip())
    messages = [{"role": "user", "content": f"what is {row.prompt_id[1:]} ?"}]
    talk = [*messages, {"role": "assistant", "content": row.text}]
    one, two = (load_reward(member)([talk]).item() for member in members)
    assert row.helpfulness == pytest.approx((one + two) / 2 - 2.0 * abs(one - two) / 2, abs=1e-4)
    assert {"helpfulness", "helpfulness.0"} <= json.loads((v1 / "stage.json").read_text())["inputs"].keys()


def test_a_server_answers_for_the_policy(run, chat_server: ChatServer, tmp_path: Path) -> None:
    def fails_after_five(body: dict[str, Any]) -> tuple[int, Any]:
        return (200, chat_server.answers(body)) if len(chat_server.asked) <= 5 else (400, b"out of memory")

    options = {"policy.server.url": chat_server.url, "policy.server.model": "tiny", "policy.server.concurrency": 1}
    chat_server.reply = fails_after_five
    with pytest.raises(InputError, match=r"server: .* answers 400 \(out of memory\) to the prompt 'what is 5 \?'"):
        run("v1", **options)
    assert not (tmp_path / "v1").exists()
    chat_server.reply, before = lambda body: (200, chat_server.answers(body)), len(chat_server.asked)
    with pytest.raises(InputError, match=r"safety \(sometimes\): score \d+ is nan"):
        run("v1", **options, safety="rewards_of_the_test:sometimes")
    assert len(chat_server.asked) - before == 7, "those that had no answer"
    v1 = run("v1", **options)
    assert len(chat_server.asked) - before == 7, "a reward that fails costs no answer"
    rows = read_completions(v1 / "completions.parquet")
    assert [row.text[:9] for row in rows] == [f"what is {i}"[:9] for i in range(12) for _ in range(5)]
    assert all(row.finished and len(row.token_ids) > 5 and math.isnan(row.logprob) for row in rows)
    assert json.loads((v1 / "selection.json").read_text())["selected"] == 12
    assert not (v1 / "samples").exists()
    chat_server.models = ["llama"]
    with pytest.raises(InputError, match="does not serve 'tiny' but llama"):
        run("v2", **options)


def test_bad_input_is_answered_in_one_sentence(run, tmp_path: Path) -> None:
    clash = tmp_path / "clash.jsonl"
    clash.write_text(json.dumps({"id": "p1", "messages": [{"role": "user", "content": "why " * 300}]}) + "\n")
    for options, message in [
        ({"helpfulness": "runs/demo/none"}, "helpfulness: runs/demo/none does not exist; `make demo` writes it"),
        ({"helpfulness": "rewards_of_the_test:broken"}, r"helpfulness \(broken\): .*\(2,\), got \(2, 1\)"),
        ({"safety": "rewards_of_the_test:sometimes"}, r"safety \(sometimes\): score \d+ is nan, and \d+ of 60 are not"),
        ({"sampling.temperature": 0}, "temperature: at 0"),
        (
            {"sampling.max_new_tokens": 1, "seed": 4},
            r"selection: no answer is left to train on \(60 unfinished\); raise sampling.max_new_tokens",
        ),
        ({"selection.minimum_reward": 99}, r"no answer is left to train on \(.*\d+ below minimum_reward"),
        (REJECTION | {"selection.missing_end_penalty": 0.5}, "missing_end_penalty: early_rejection leaves answers"),
        ({"early_rejection.at": "[150]"}, r"early_rejection.at: must lie below sampling.max_new_tokens, which is 150"),
        (
            REJECTION | {"policy.rows": 4},
            "compares a prompt's 6 answers while they are written, but only 4 are written",
        ),
        (
            REJECTION | {"policy.server.url": "http://x/v1", "policy.server.model": "x"},
            "early_rejection: a server gives whole",
        ),
        (REJECTION | {"helpfulness": "rewards_of_the_test:sometimes"}, r"helpfulness \(sometimes\): score \d+ is nan"),
        (
            {"policy.compile": True, "policy.server.url": "http://x/v1", "policy.server.model": "x"},
            "policy.compile: the server decides that itself; leave it out",
        ),
        ({"policy.rows": 0}, "rows: must be at least 1, got 0"),
        ({"selection.top_n": 0}, "top_n: must be at least 1, got 0"),
        ({"temperature_from": tmp_path / "prompts.jsonl"}, r"temperature_from: .*prompts.jsonl is no sweep.json"),
        ({"earlier_prompts": json.dumps([str(clash)])}, "earlier_prompts: two prompts have the id 'p1'"),
        ({"prompts": clash, "too_long": "refuse"}, "policy: 1 of 1 prompts leave no room for 150 new tokens"),
        ({"pool": tmp_path}, "pool: .* holds no"),
    ]:
        with pytest.raises(InputError, match=message):
            run("v1", **{"fresh": "true"} | options)
    assert not (tmp_path / "v1").exists()


def test_unfinished_answers_are_trained_on_without_an_end(
    run, tmp_path: Path, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All answers of three tokens are cut off; nothing that is trained on ends, and the pool's best are kept too."""
    trained: list[list[int]] = []
    rendered = Renderer.dialogues

    def noted(self: Renderer, *arguments: Any) -> Any:
        found = rendered(self, *arguments)
        trained.extend([i for i, m in zip(r.input_ids, r.loss_mask, strict=True) if m] for r in found)
        return found

    monkeypatch.setattr("rlhf.finetuning.supervised.Renderer.dialogues", noted)
    v1 = run("v1", **{"selection.missing_end_penalty": 0.5, "sampling.max_new_tokens": 3})
    selected = [json.loads(line) for line in (v1 / "selected.jsonl").read_text().splitlines()]
    assert len(selected) == 12 and json.loads((v1 / "selection.json").read_text())["selected_finished_share"] < 0.2
    unfinished = [row["messages"][-1].get("finished", True) is False for row in selected]
    ends = Renderer(load_tokenizer(tiny_policy_path)).end_token_ids
    assert [row[-1] not in ends for row in trained[-12:]] == unfinished and sum(unfinished) > 9
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "v1.parquet").symlink_to(v1 / "completions.parquet")
    assert len(read_pool(pool, top=1, missing_end_penalty=0.5)) == 12
    assert len(read_pool(pool, top=1)) == 12 - sum(unfinished)


def test_more_answers_a_prompt_at_the_temperature_of_a_sweep(run, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"best": {"temperature": 1.3}}))
    v1 = run("v1", temperature_from=sweep, **{"selection.top_n": 3, "selection.max_similarity": 0.9})
    rows = read_completions(v1 / "completions.parquet")
    assert all(row.temperature == pytest.approx(1.3) for row in rows)
    figures = json.loads((v1 / "selection.json").read_text())
    selected = [json.loads(line) for line in (v1 / "selected.jsonl").read_text().splitlines()]
    assert figures["selected"] == len(selected) > len({row["id"] for row in selected}) > 0
    assert figures["left_out"]["unfinished"] == sum(not row.finished for row in rows)
    by_prompt: dict[str, list[float]] = {}
    for row in selected:
        by_prompt.setdefault(row["id"], []).append(row["reward"])
    assert all(len(own) <= 3 and own == sorted(own, reverse=True) for own in by_prompt.values())


def test_the_best_answers_to_earlier_versions_prompts_are_trained_on_too(run, tmp_path: Path) -> None:
    v1 = run("v1", seed=1)
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "v1.parquet").symlink_to(v1 / "completions.parquet")
    new = tmp_path / "new.jsonl"
    rows = [{"id": f"q{i}", "messages": [{"role": "user", "content": f"how is {i} ?"}]} for i in range(6)]
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"prompts": new, "pool": pool, "seed": 2}
    alone = json.loads((run("v2", **options) / "selection.json").read_text())
    assert (alone["candidates_by_version"], alone["pool"], alone["pool_left_out"]) == ({"v2": 30}, {"v1": 60}, 60)
    earlier = json.dumps([str(tmp_path / "prompts.jsonl")])
    run("v2", **options, earlier_prompts=earlier, pool_top=2, output=tmp_path / "both")
    both = json.loads((tmp_path / "both" / "selection.json").read_text())
    assert both["candidates_by_version"]["v1"] <= 24 and both["pool_left_out"] == 0
    assert both["selected_by_version"]["v1"] == json.loads((v1 / "selection.json").read_text())["selected"]
    assert both["prompts"] == 6 and both["curve"] == alone["curve"], "the curve is of this version's draw"


def test_a_smaller_student_with_another_tokenizer_learns_from_the_policy_s_answers(
    run, tiny_policy_path: Path, tmp_path: Path
) -> None:
    """Distillation (paper, section 3.2.3): the student reads the answers' text, by its own tokens and template."""
    student = tmp_path / "student"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["what is the answer to it ?"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<pad>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{{ eos_token if m['role'] == 'assistant' else '' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    fast.save_pretrained(student)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(fast), n_positions=512, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained(student)

    v1 = run("v1", fine_tune_from=student)
    assert load_tokenizer(v1 / "checkpoint").get_vocab() == fast.get_vocab()
    assert fast.get_vocab() != load_tokenizer(tiny_policy_path).get_vocab()
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (student, v1 / "checkpoint"))
    assert after.config.model_type == "gpt2" and after.num_parameters() == 15_824
    dialogues = [json.loads(line)["messages"] for line in (v1 / "selected.jsonl").read_text().splitlines()]
    losses = []
    for model in (before, after):
        rows = [Renderer(fast).dialogue(dialogue, "last") for dialogue in dialogues]
        ids = [torch.tensor([row.input_ids]) for row in rows]
        labels = [row.masked_fill(~torch.tensor([r.loss_mask]), -100) for row, r in zip(ids, rows, strict=True)]
        with torch.no_grad():
            losses.append(sum(model(i, labels=own).loss.item() for i, own in zip(ids, labels, strict=True)) / len(rows))
    assert losses[1] < losses[0]
    again = run("v2", policy=v1 / "checkpoint", fine_tune_from=v1 / "checkpoint")
    assert (again / "checkpoint").is_dir(), "the student is a policy like any other"


def test_early_rejection_gives_up_the_worst_parts_and_changes_no_other_answer(run, tiny_policy_path: Path) -> None:
    whole = read_completions(run("whole", num_samples=6) / "completions.parquet")
    folder = run("v1", **REJECTION)
    rows = read_completions(folder / "completions.parquet")
    renderer = Renderer(load_tokenizer(tiny_policy_path))
    dropped = 0
    for first in range(0, len(rows), 6):
        before, after = whole[first : first + 6], rows[first : first + 6]
        for one, other in zip(before, after, strict=True):
            assert one.token_ids[: len(other.token_ids)] == other.token_ids

        def score(i: int, cut: int, first: int = first, before: list[Completion] = before) -> float:
            text = renderer.answer_text(before[i].token_ids[:cut])
            letters = sum(letter.isalpha() for letter in text) / 10
            return -math.inf if not text else 2 - len(text) / 50 if first // 6 % 2 else letters

        for cut in (6, 12):
            alive = [i for i in range(6) if len(before[i].token_ids) > cut and len(after[i].token_ids) >= cut]
            given_up = {i for i in alive if len(after[i].token_ids) == cut}
            worst_first = sorted(alive, key=lambda i: (score(i, cut), -i))
            assert given_up == set(worst_first[: len(alive) // 2])
            assert not any(after[i].finished for i in given_up)
            dropped += len(given_up)
    assert dropped > 36
    figures = json.loads((folder / "selection.json").read_text())
    assert figures["selected"] > 0 and not {"curve", "mean_reward"} & figures.keys()
    left = [row for row in rows if row.finished or len(row.token_ids) not in (6, 12)]
    assert figures["given_up_share"] == pytest.approx(dropped / 72) and len(left) == 72 - dropped
    assert figures["mean_length"] == fmean(len(row.token_ids) for row in left)
    assert figures["finished_share"] == fmean(row.finished for row in left)
    assert sum(len(row.token_ids) for row in rows) < 0.5 * sum(len(row.token_ids) for row in whole)


@pytest.mark.doors
def test_early_rejection_goes_on_where_it_was_and_anew_where_it_would_reject_others(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(**options: object) -> int:
        """Answers that were drawn before the selection failed."""
        drawn = 0
        stream = InProcessSampler.stream

        def counted(self: InProcessSampler, *arguments: Any) -> Any:
            nonlocal drawn
            for position, answers in stream(self, *arguments):
                drawn += len(answers)
                yield position, answers

        with monkeypatch.context() as patch, pytest.raises(InputError, match="no answer is left"):
            patch.setattr(InProcessSampler, "stream", counted)
            run("v1", **{**REJECTION, "selection.minimum_reward": 99, "fresh": "true", **options})
        return drawn

    assert stopped() == 72
    assert stopped() == 0, "nothing is drawn twice"
    assert stopped(**{"early_rejection.drop": 0.4}) == 72
    assert stopped(**{"early_rejection.drop": 0.4, "safety": "rewards_of_the_test:letters"}) == 72
    assert stopped(**{"early_rejection.drop": 0.4, "safety": "rewards_of_the_test:letters", "policy.rows": 6}) == 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace('"safety"', '"helpfulness"'))
    assert stopped(**{"early_rejection.drop": 0.4, "safety": "rewards_of_the_test:letters"}) == 72, "the gate changed"


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_fine_tuning_an_adapter(run, quantization: str | None) -> None:
    options = {"adapter.r": 4, "adapter.alpha": 8} | ({"quantization": quantization} if quantization else {})
    v1 = run("v1", **options)
    assert (v1 / "checkpoint" / "adapter").is_dir() == (quantization == "nf4")
    assert run("v2", policy=v1 / "checkpoint").is_dir()


def test_more_dialogues_are_mixed_in_and_train_on_their_last_answer(run, tmp_path: Path, capsys) -> None:
    told = [
        {"role": "user", "content": "Act as Al. hello"},
        {"role": "assistant", "content": "what is"},
        {"role": "user", "content": "river ?"},
        {"role": "assistant", "content": "goat"},
    ]
    ghost = tmp_path / "ghost.jsonl"
    ghost.write_text((json.dumps({"instruction": "Act as Al.", "messages": told}) + "\n") * 2)
    plain, mixed = run("v1", seed=1), run("v2", seed=1, mixed_data=json.dumps([str(ghost)]), mixed_share=0.5)
    rows = len((plain / "selected.jsonl").read_text().splitlines())
    said = capsys.readouterr().err
    assert f"mix: an other_share of 0.5 asks for {rows} other rows, there are 2" in said
    assert "mixed_in 2" in said and "mixed_in: rows of other dialogues, among the " in said
    weights = [AutoModelForCausalLM.from_pretrained(f / "checkpoint").state_dict() for f in (plain, mixed)]
    assert any(not weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert "mixed_data.0" in json.loads((mixed / "stage.json").read_text())["inputs"]
    with pytest.raises(InputError, match=r"finetuning\.train: must be last with mixed_data"):
        run("v3", mixed_data=json.dumps([str(ghost)]), mixed_share=0.5, **{"finetuning.train": "all"})
    with pytest.raises(InputError, match=r"mixed_share: must be 0 or above and below 1, got 1\.0"):
        run("v3", mixed_data=json.dumps([str(ghost)]), mixed_share=1.0)


@pytest.mark.parametrize("strict", [False, True])
def test_training_on_the_only_answer_that_was_not_cut_off_is_suspicious(
    tiny_policy_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    strict: bool,
) -> None:
    stream = InProcessSampler.stream

    def cut_off(self: InProcessSampler, *arguments: Any) -> Any:
        """Of the 32 answers the first alone is finished."""
        for position, answers in stream(self, *arguments):
            yield position, [replace(a, text="mora", finished=not position and not i) for i, a in enumerate(answers)]

    monkeypatch.setattr(InProcessSampler, "stream", cut_off)
    (tmp_path / "rewards_of_the_test.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}]} for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "output": tmp_path / "v1",
        "policy": tiny_policy_path,
        "fine_tune_from": tiny_policy_path,
        "prompts": tmp_path / "prompts.jsonl",
        "helpfulness": "rewards_of_the_test:letters",
        "safety": "rewards_of_the_test:brevity",
        "version": "v1",
        "num_samples": 8,
        "sampling.max_new_tokens": 4,
        "strict": str(strict).lower(),
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["rejection_sampling.py", *arguments])
    sentences = [
        "97% of the answers are cut off; raise sampling.max_new_tokens",
        "only 1 of 4 are left to train on (31 unfinished)",
        "it trained on 1 rows; fewer than 10 teach nothing else",
    ]
    output, aside = tmp_path / "v1", tmp_path / "v1.suspicious"
    if strict:
        with pytest.raises(SystemExit) as ended:
            run_recipe(rejection_sampling.main, RejectionSamplingConfig)
        assert ended.value.code == 3 and not output.exists()
    else:
        run_recipe(rejection_sampling.main, RejectionSamplingConfig)
        assert not aside.exists()
    made = aside if strict else output
    closing = json.loads((made / "stage.json").read_text())["closing"]
    assert closing["rows_used"] == 1 and closing["left_out"] == {"unfinished": 31}
    assert sorted(closing["suspicious"]) == sorted(sentences)
    said = capsys.readouterr().err
    assert all(f"  suspicious: {sentence}\n" in said for sentence in sentences)
    assert ("error: strict: " in said) == strict and (f"what was made is in {aside}" in said) == strict
    assert AutoModelForCausalLM.from_pretrained(made / "checkpoint").num_parameters() > 0
