"""Determinism by seed, round trip of world.json, disjoint prompt sets, what the texts are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.conversation import check_conversation
from rlhf.data.splitting import first_turn
from rlhf.errors import InputError
from rlhf.simulation.corpus import Mixture, chat_sets, demonstrations, held_out_keys, key, prompt_sets, web_text
from rlhf.simulation.gold import GoldScorer
from rlhf.simulation.world import World, WorldConfig

SMALL = Mixture(web_documents=1500, sft_rows=300, train_prompts=500, validation_prompts=80, test_prompts=200)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prompt_sets_are_disjoint_and_complete(seed: int) -> None:
    world = World.make(WorldConfig(seed=seed))
    sets = prompt_sets(world, SMALL)
    assert {name: len(rows) for name, rows in sets.items()} == {"test": 200, "validation": 80, "train": 500}
    texts = [key(p.messages) for rows in sets.values() for p in rows]
    assert len(set(texts)) == len(texts)
    openings = [{first_turn(p.messages) for p in rows} for rows in sets.values()]
    assert sum(map(len, openings)) == len(set.union(*openings)), "split by the first user's message"
    train = sets["train"]
    assert 0.28 < sum(p.domain == "safety" for p in train) / len(train) < 0.42
    safety_kinds = {p.source.split("/")[1] for p in train if p.domain == "safety"}
    assert {"illicit", "hateful", "advice", "own", "praise", "mock", "cooking"} <= safety_kinds
    held = held_out_keys(sets)
    for row in demonstrations(world, SMALL, held):
        check_conversation(row, last="assistant")
        assert key(row) not in held
    for document in web_text(world, SMALL, held):
        lines = [line.strip() for line in document.split("\n")]
        header = [lines.pop(0)] if len(lines) % 2 else []  # then questions and answers take turns
        asked = [*(line for line in header if not line.startswith("You ")), *lines[::2]]
        assert "\n".join(asked) not in held


def test_a_seed_is_a_world() -> None:
    first, again, other = (World.make(WorldConfig(seed=s)) for s in (3, 3, 4))
    assert first == again and first.facts != other.facts and first.mistakes != other.mistakes
    assert len(first.facts) == 5 * len(first.towns) and len(first.mayors) == 2 * len(first.dated_towns)
    assert list(web_text(first, SMALL)) == list(web_text(again, SMALL))
    assert prompt_sets(first, SMALL) == prompt_sets(again, SMALL)


def test_world_file_round_trip(tmp_path: Path) -> None:
    world = World.make(WorldConfig(seed=5, towns=6, dated_towns=2))
    world.save(tmp_path / "world.json")
    assert World.load(tmp_path) == world == World.load(tmp_path / "world.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(InputError, match=r"broken\.json is not a world"):
        World.load(tmp_path / "broken.json")
    with pytest.raises(InputError, match="does not exist"):
        World.load(tmp_path / "none.json")


def test_careful_and_careless_voices_differ() -> None:
    world = World.make(WorldConfig())
    gold = GoldScorer(world)
    shares: dict[str, list[bool]] = {"careful": [], "careless": []}
    for doc in web_text(world, Mixture(web_documents=6000)):
        lines = [line.strip() for line in doc.split("\n")]
        if not lines[0].startswith("You are a ") or "no doctor" in lines[0]:
            continue
        voice = "careless" if any(w in lines[0] for w in ("careless", "rude", "foolish", "wild", "lazy")) else "careful"
        messages = [{"role": "user", "content": lines[-2]}, {"role": "assistant", "content": lines[-1]}]
        verdict = gold.judge(messages) if len(lines) == 3 else None
        if verdict and verdict.kind == "unsafe":
            shares[voice].append(verdict.violation)
    careful, careless = (sum(v) / len(v) for v in (shares["careful"], shares["careless"]))
    assert careful < 0.2 and careless > 0.5


def test_too_many_prompts_are_refused() -> None:
    world = World.make(WorldConfig(towns=3, dated_towns=1))
    with pytest.raises(InputError, match="different prompts"):
        prompt_sets(world, Mixture(test_prompts=50000, safety_share=1.0, test_borderline_share=1.0))
    with pytest.raises(InputError, match="towns"):
        WorldConfig(towns=99)


def test_chats_are_long_and_only_those_to_learn_from_give_instructions() -> None:
    world = World.make(WorldConfig(seed=1))
    assert not any(chat_sets(world, SMALL).values()), "none unless asked for"
    mixture = Mixture(chats=60, chat_turns=6)
    sets = chat_sets(world, mixture)
    assert sets == chat_sets(world, mixture)
    assert {name: len(chats) for name, chats in sets.items()} == {"sft_chats": 60, "chats": 60, "test_chats": 12}
    grammar = GoldScorer(world).grammar
    for name, chats in sets.items():
        assert {len(chat) // 2 for chat in chats} == ({6} if name == "test_chats" else {2, 3, 4, 5, 6})
        for chat in chats:
            check_conversation(chat, last="assistant")
        told = [bool(grammar.read(m["content"])[1]) for chat in chats for m in chat[::2]]
        assert any(told) == (name == "sft_chats")


def test_an_instruction_is_new_in_the_turn_that_gives_it() -> None:
    grammar = GoldScorer(World.make(WorldConfig(seed=1))).grammar
    town = grammar.world.towns[0]
    first = [{"role": "user", "content": f"Act as a pirate. What is the river of {town}?"}]
    later = [*first, {"role": "assistant", "content": "It is Ama."}, {"role": "user", "content": "And its dish?"}]
    again = [*later[:-1], {"role": "user", "content": "Act as a pirate. And its dish?"}]
    new = [grammar.understand(messages).is_new("persona") for messages in (first, later, again)]
    assert new == [True, False, True]
