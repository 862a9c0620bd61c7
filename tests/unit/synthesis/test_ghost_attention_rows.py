"""The instruction stands n times in what is sampled under, once in what is trained, and only the last answer trains."""

from __future__ import annotations

import copy

import pytest

from rlhf.conversation import LLAMA2_CHAT_TEMPLATE, Renderer, split_thoughts
from rlhf.sampling.protocol import Sample
from rlhf.synthesis.ghost_attention import (
    KEYS_PER_DIALOGUE,
    answer_dialogues,
    answer_last_turns,
    sampling_context,
    training_context,
)
from rlhf.synthesis.showing import END, INSTRUCTION, TRAINED, coloured

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}"
    "{{ ('### Human: ' if m['role'] == 'user' else '### Bot: ') + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Bot:' }}{% endif %}"
)
TEMPLATES = {"llama2": (LLAMA2_CHAT_TEMPLATE, "</s>"), "chatml": (CHATML, "<|im_end|>"), "plain": (PLAIN, "</s>")}
TOLD = "Act as Napoleon."


def dialogue(turns: int, system: str = "") -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"what is the river {turn} ?"})
        messages.append({"role": "assistant", "content": f"the river is mora {turn} ."})
    return messages


@pytest.fixture(params=list(TEMPLATES))
def case(request, tiny_tokenizer):
    """A renderer of one template, and the text of its end token."""
    template, end = TEMPLATES[request.param]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if template == CHATML:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return Renderer(tokenizer), end


@pytest.mark.parametrize("turns", [2, 3, 7])
def test_what_the_ids_say_and_which_are_trained(case, turns: int) -> None:
    renderer, end = case
    messages = dialogue(turns)
    sampled = renderer.tokenizer.decode(renderer.prompt_ids(sampling_context(messages[:-1], TOLD)))
    row = renderer.dialogue(training_context(messages, TOLD), train="last")
    text = renderer.tokenizer.decode(row.input_ids)
    assert sampled.count(TOLD) == turns and text.count(TOLD) == 1
    assert text.index(TOLD) < text.index("what is the river 0 ?") < text.index("what is the river 1 ?")
    trained = [token for token, m in zip(row.input_ids, row.loss_mask, strict=True) if m]
    assert renderer.tokenizer.decode(trained).strip() == f"the river is mora {turns - 1} .{end}"
    first = row.loss_mask.index(True)
    assert all(row.loss_mask[first:]) and not any(row.loss_mask[:first]), "one run of tokens, at the end"


def test_a_system_message_stays_and_is_not_a_turn() -> None:
    messages = dialogue(2, system="you are a guide")
    assert [m["content"].startswith(TOLD) for m in sampling_context(messages, TOLD)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert [m["content"].startswith(TOLD) for m in training_context(messages, TOLD)] == [False, True, *[False] * 3]
    assert messages == dialogue(2, system="you are a guide"), "nothing is changed in place"


class Echo:
    """Answers with what the last message said; remembers prompts and keys."""

    def __init__(self) -> None:
        self.calls: list[tuple[list, list[int]]] = []

    def __call__(self, prompts, keys):
        self.calls.append((list(prompts), list(keys)))
        return [Sample(f"echo {p[-1]['content']}", (1,), 0.0, len(p) < 6) for p in prompts]


def test_all_answers_are_the_model_s_own_and_are_the_history_of_later_ones() -> None:
    ask = Echo()
    longer, shorter = answer_dialogues([dialogue(3), dialogue(1, "be kind")], [TOLD, "Speak."], sampling_context, ask)
    assert [keys for _, keys in ask.calls] == [[0, KEYS_PER_DIALOGUE], [1], [2]]
    last = ask.calls[2][0][0]
    assert [m["content"] for m in last] == [
        f"{TOLD} what is the river 0 ?",
        f"echo {TOLD} what is the river 0 ?",
        f"{TOLD} what is the river 1 ?",
        f"echo {TOLD} what is the river 1 ?",
        f"{TOLD} what is the river 2 ?",
    ]
    assert [m["content"] for m in longer.messages][::2] == [f"what is the river {t} ?" for t in range(3)]
    assert longer.messages[-1]["content"] == f"echo {TOLD} what is the river 2 ?" and longer.finished
    assert [m["role"] for m in shorter.messages] == ["system", "user", "assistant"]


def test_a_dialogue_ends_before_the_turn_that_does_not_fit() -> None:
    ask = Echo()
    fits = lambda prompts: [len(p) < 5 for p in prompts]  # noqa: E731
    (cut,) = answer_dialogues([dialogue(5)], [TOLD], training_context, ask, fits)
    assert len(cut.messages) == 4 and cut.messages[-1]["role"] == "assistant"
    some = [dialogue(5), dialogue(2)]
    left, whole = answer_dialogues(some, [TOLD, TOLD], training_context, Echo(), fits, whole=True)
    assert left.messages == [] and len(whole.messages) == 4
    assert [a.messages for a in answer_dialogues([dialogue(2)], [TOLD], sampling_context, ask, lambda p: [False])] == [
        []
    ]
    assert [a.messages for a in answer_last_turns([dialogue(2)], [TOLD], ask, lambda p: [False] * len(p))] == [[]]


def test_with_given_history_only_the_last_answer_is_sampled() -> None:
    ask = Echo()
    (answered,) = answer_last_turns([dialogue(4)], [TOLD], ask)
    assert answered.messages[:-1] == dialogue(4)[:-1] and not answered.finished
    ((prompts, _),) = ask.calls
    assert sum(m["content"].count(TOLD) for m in prompts[0]) == 4


def test_colours_mark_the_instruction_and_the_loss(tiny_tokenizer) -> None:
    shown = coloured(Renderer(tiny_tokenizer), training_context(dialogue(2), TOLD), TOLD)
    assert shown.count(f"{INSTRUCTION}{TOLD}{END}") == 1
    assert shown.endswith(f"{TRAINED} the river is mora 1 .</s>{END}") and shown.count(TRAINED) == 1


def test_the_last_answer_trains_with_its_thoughts_and_is_asked_and_judged_without() -> None:
    """Decision 61: a model that thinks must not learn to stop."""
    asked: list[list[dict[str, str]]] = []

    def ask(prompts, keys):
        asked.extend(prompts)
        return [Sample(f"answer {key}", (1,), 0.0, True, thoughts=f"thought {key}") for key in keys]

    (every,) = answer_dialogues([dialogue(2)], [TOLD], sampling_context, ask)
    (last,) = answer_last_turns([dialogue(2)], [TOLD], ask)
    for answered, key in ((every, 1), (last, 0)):
        assert answered.messages[-1]["content"] == f"answer {key}"
        assert split_thoughts(answered.trained[-1]["content"]) == (f"thought {key}", f"answer {key}")
        assert answered.trained[:-1] == answered.messages[:-1]
    assert not any("thought" in message["content"] for prompt in asked for message in prompt)
