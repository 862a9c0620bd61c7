"""One rule for a model's context: what it is, how a text is cut to it, and what is said before a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, GPT2Config, LlamaConfig, MambaConfig, RobertaConfig

from rlhf.conversation import Conversation, Renderer
from rlhf.conversation.pieces import Pieces
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.models.checkpoint.context import Context
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.loading import load_reward
from rlhf.sampling.chat import ServerConfig
from rlhf.sampling.room import Room, answerable, prompts_of_at_most, prompts_within, readable, with_room
from rlhf.sampling.source import PolicySource
from rlhf.stage.closing import Closing


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (LlamaConfig(max_position_embeddings=256), 256),
        (GPT2Config(n_positions=64), 64),
        (BertConfig(max_position_embeddings=512), 512),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (MambaConfig(), None),
    ],
)
def test_the_context_of_a_family(config: object, length: int | None) -> None:
    assert Context.of(config).length == length


def test_the_lowest_context_of_several_and_what_a_tokenizer_says(tiny_policy_path: Path, short_reward: Path) -> None:
    long, short = (Context.of_checkpoint(folder).length for folder in (tiny_policy_path, short_reward))
    assert (long, short) == (256, 40) and Context.of_checkpoint(tiny_policy_path, short_reward).length == 40
    assert PolicySource(checkpoint=short_reward).context == Context(40)
    served = ServerConfig(url="http://localhost:1/v1", model="m")
    assert PolicySource(checkpoint=short_reward, server=served).context == Context(None)
    for said, length in ((512, 512), (int(1e30), None), (1 << 30, None)):
        assert Context.of_tokenizer(SimpleNamespace(model_max_length=said)).length == length


def test_prompts_keep_half_of_the_context_and_leave_room_otherwise() -> None:
    context = Context(100)
    assert [context.room_before(n) for n in (10, 60, 1000)] == [90, 50, 50]
    assert context.room_before(10, "unfinished") == 99 and context.room_before(10, "refuse") is None
    assert context.holds(100) and not context.holds(101) and Context(None).holds(10**9)
    assert context.limit(70, None) == 70 and context.limit() == 100 and Context(None).limit(None) is None


LONG = "what is the river of velda ? " * 20


@pytest.mark.parametrize("limit", [22, 30, 60, 119])
@pytest.mark.parametrize("system", ["", "please answer in one word " * 8])
def test_a_cut_dialogue_fits_keeps_the_template_and_the_end(tiny_tokenizer, limit: int, system: str) -> None:
    dialogue: Conversation = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "sure"},
        {"role": "user", "content": LONG + "how do I paint my own goat"},
        {"role": "assistant", "content": "ask a doctor"},
    ]
    if system:
        dialogue.insert(0, {"role": "system", "content": system})
    limit += 24 if system else 0  # the system message's own marks
    rendered = Renderer(tiny_tokenizer, max_length=limit, cut=True).dialogue(dialogue, train="last")
    assert rendered.cut and limit - 8 <= len(rendered.input_ids) <= limit
    text = tiny_tokenizer.decode(rendered.input_ids)
    assert text.startswith("<s>[INST] ") and text.count("[INST]") == 1 and text.endswith("</s>")
    if limit >= 30:
        answer = [i for i, trained in zip(rendered.input_ids, rendered.loss_mask, strict=True) if trained]
        assert tiny_tokenizer.decode(answer) == " ask a doctor</s>"
    if limit >= 60 and not system:
        assert text.rpartition("[/INST]")[0].endswith("how do I paint my own goat ")
    assert not Renderer(tiny_tokenizer, max_length=1000, cut=True).dialogue(dialogue).cut


@pytest.mark.parametrize("cut", [False, True])
def test_a_dialogue_that_just_fits_is_whole_however_many_characters_it_has(tiny_tokenizer, cut: bool) -> None:
    dialogue: Conversation = [
        {"role": "system", "content": "please answer in one word"},
        {"role": "user", "content": "what is the river of velda ?"},
        {"role": "assistant", "content": LONG},
        {"role": "user", "content": "how do I paint my own goat"},
        {"role": "assistant", "content": "ask a doctor"},
    ]
    whole = Renderer(tiny_tokenizer).dialogue(dialogue)
    limit = len(whole.input_ids)
    assert sum(len(message["content"]) for message in dialogue) > limit
    found = Renderer(tiny_tokenizer, max_length=limit, cut=cut).dialogue(dialogue)
    assert (found.input_ids, found.cut) == (whole.input_ids, False)
    shorter = Renderer(tiny_tokenizer, max_length=limit - 1, cut=cut).dialogue(dialogue)
    assert shorter.cut and len(shorter.input_ids) < limit


def test_the_answer_is_cut_last_and_a_limit_below_the_template_is_refused(tiny_tokenizer) -> None:
    dialogue: Conversation = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": LONG + "goat"}]
    rendered = Renderer(tiny_tokenizer, max_length=40, cut=True).dialogue(dialogue)
    text = tiny_tokenizer.decode(rendered.input_ids)
    assert len(rendered.input_ids) <= 40 and text.endswith("goat</s>") and "[/INST]" in text
    with pytest.raises(InputError, match="above max_length=4"):
        Renderer(tiny_tokenizer, max_length=4, cut=True).dialogue(dialogue)


@pytest.fixture(scope="module")
def short_reward(tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose context is 40 tokens."""
    import json

    start = tmp_path_factory.mktemp("short") / "policy"
    shutil.copytree(tiny_policy_path, start)
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    folder = start.parent / "reward"
    RewardModel.from_policy(start, safety_head=False, seed=0).save(folder, load_tokenizer(start))
    return folder


def test_an_answer_longer_than_a_reward_model_s_context_is_scored_cut_and_counted(short_reward: Path) -> None:
    """Before, one such answer ended PPO at the iteration that drew it, and again on every start."""
    short: Conversation = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "sure"}]
    long: Conversation = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": LONG}]
    reward = load_reward(short_reward, device="cpu")
    got = GatedReward(reward)([short, long], ["helpfulness"] * 2)
    assert got.too_long.tolist() == [False, True]
    alone = Renderer(reward.renderer.tokenizer, max_length=40, cut=True).dialogue(long)  # type: ignore[attr-defined]
    want = reward.model(torch.tensor([alone.input_ids]), torch.ones(1, len(alone.input_ids))).score  # type: ignore[attr-defined]
    torch.testing.assert_close(got.helpfulness[1:], want.detach(), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="1 of 2 answers with their prompts are longer than its context; shorten"):
        GatedReward(reward, too_long="refuse")([short, long], ["helpfulness"] * 2)


def test_what_leaves_no_room_is_said_before_the_run(
    tiny_policy_path: Path, short_reward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [
        Prompt("short", [{"role": "user", "content": "hello"}]),
        Prompt("long", [{"role": "user", "content": LONG}]),
    ]
    models = {"policy": tiny_policy_path, "helpfulness": short_reward}
    assert with_room(prompts, models, 16, "cut") == (prompts, {"helpfulness": 1})
    said = capsys.readouterr().err
    assert "helpfulness: 1 of 2 prompts leave no room for 16 new tokens in its context of 40 (prompt 'long' has" in said
    assert with_room(prompts, models, 16, "skip") == (prompts[:1], {"helpfulness": 1})
    with pytest.raises(InputError, match="too_long: no prompt leaves room for 230 new tokens"):
        with_room(prompts, models, 230, "skip")
    assert with_room(prompts, models, 230, "cut") == (prompts, {"policy": 1, "helpfulness": 2})
    with pytest.raises(InputError, match=r"helpfulness: 1 of 2 prompts .* or set too_long to cut"):
        with_room(prompts, models, 16, "refuse")
    renderer = Renderer(load_reward(short_reward, device="cpu").renderer.tokenizer)  # type: ignore[attr-defined]
    assert [p.id for p in prompts_of_at_most("prompts", "x", prompts, renderer, 20)] == ["short"]
    with pytest.raises(InputError, match="prompts: x has no prompts of at most 2 tokens; raise that limit"):
        prompts_of_at_most("prompts", "x", prompts, renderer, 2)


def test_a_text_of_megabytes_is_not_encoded_to_see_that_it_is_too_long(
    tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, each of four models' tokenizers read it whole, five seconds for 20 MB."""
    encoded = []
    encode = Pieces.encode
    monkeypatch.setattr(
        Pieces, "encode", lambda self, texts: encoded.append(sum(map(len, texts))) or encode(self, texts)
    )
    prompts = [Prompt("long", [{"role": "user", "content": "goat " * 400_000}])]
    assert with_room(prompts, {"policy": tiny_policy_path}, 16, "cut") == (prompts, {"policy": 1})
    assert "(prompt 'long' has at least " in capsys.readouterr().err
    renderer = Renderer(load_tokenizer(tiny_policy_path))
    (ids,) = prompts_within(Context(60), renderer, [prompts[0].messages], 8, "cut")
    assert ids == renderer.limited(52).prompts([prompts[0].messages])[0]
    assert Room(Context(60), renderer, 8, "cut")([prompts[0].messages]) == [False]
    with pytest.raises(InputError, match=r"has at least .* tokens with its history, which leaves no room for 8 more"):
        prompts_within(Context(60), renderer, [prompts[0].messages], 8, "refuse")
    assert max(encoded) < 100_000


def test_a_stage_s_closing_block_counts_what_leaves_no_room(tiny_policy_path: Path) -> None:
    asked: list[tuple[str, Conversation]] = [(text, [{"role": "user", "content": text}]) for text in ("hello", LONG)]
    stage: Any = SimpleNamespace(inputs={"models.a": tiny_policy_path}, closing=Closing())
    for too_long, left in (("cut", asked), ("skip", asked[:1])):
        stage.config = SimpleNamespace(too_long=too_long)
        assert answerable(stage, asked, 200, messages=lambda row: row[1]) == left
    assert stage.closing.left_out == {"too long a prompt": 1} and stage.closing.numbers == {"prompts_without_room": 2}


def test_a_dialogue_that_a_policy_holds_is_refused_where_it_leaves_no_room(tiny_policy_path: Path) -> None:
    prompts: list[Conversation] = [[{"role": "user", "content": text}] for text in ("hello", LONG)]
    given = (Context(60), Renderer(load_tokenizer(tiny_policy_path)), 8)
    assert Room(*given, "cut")(prompts) == Room(*given, "skip")(prompts) == [True, False]
    with pytest.raises(
        InputError, match="dialogues: 1 of 2 leave no room for 8 new tokens in the policy's context of 60"
    ):
        Room(*given, "refuse")(prompts)


def test_rows_that_a_reward_model_cannot_read_whole_are_counted_left_out_or_refused(short_reward: Path) -> None:
    question: Conversation = [{"role": "user", "content": "hello"}]
    rows = [[*question, {"role": "assistant", "content": text}] for text in ("sure", LONG)]
    stage: Any = SimpleNamespace(inputs={"rewards.mine": short_reward}, config=SimpleNamespace(), closing=Closing())
    for too_long, left in (("cut", rows), ("skip", rows[:1])):
        stage.config.too_long = too_long
        assert readable(stage, rows, lambda row: [row]) == left
    assert stage.closing.left_out == {"too long": 1} and stage.closing.numbers == {"rows_too_long": 1}
    stage.config.too_long = "refuse"
    with pytest.raises(InputError, match=r"rewards\.mine: 1 of 2 rows are longer than its context of 40; leave"):
        readable(stage, rows, lambda row: [row])


def test_a_reward_model_without_a_chat_template_is_not_looked_at(short_reward: Path, tmp_path: Path) -> None:
    """It reads pairs of texts, in a way of its own."""
    shutil.copytree(short_reward, tmp_path / "pairs")
    (tmp_path / "pairs" / "chat_template.jinja").unlink()
    prompts = [Prompt("long", [{"role": "user", "content": LONG}])]
    assert with_room(prompts, {"helpfulness": tmp_path / "pairs"}, 16, "refuse") == (prompts, {})
    inputs = {"rewards.mine": tmp_path / "pairs"}
    stage: Any = SimpleNamespace(inputs=inputs, config=SimpleNamespace(too_long="refuse"), closing=Closing())
    assert readable(stage, prompts, lambda p: [p.answered("sure")]) == prompts
