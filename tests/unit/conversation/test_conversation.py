"""The renderer: what is trained is what is sampled, whatever the template."""

from __future__ import annotations

import copy
import re

import pytest

from rlhf.conversation import LLAMA2_CHAT_TEMPLATE, Renderer, check_conversation
from rlhf.errors import InputError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set head = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' %}"
    "{% if loop.first %}{% set head = bos_token + head %}{% endif %}"
    "{{ head + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# as Qwen3 has it: an empty thought before the last answer only, which the generation prompt does not write
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}"
    "{{ ('### Human: ' if m['role'] == 'user' else '### Bot: ') + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Bot:' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
TEMPLATES = {"llama2": LLAMA2_CHAT_TEMPLATE, "chatml": CHATML, "llama3": LLAMA3, "thinking": THINKING, "plain": PLAIN}

SYSTEM = {"role": "system", "content": "you are a helpful guide"}
FOUR = [
    {"role": "user", "content": "what is the river ?"},
    {"role": "assistant", "content": "the river is mora ."},
    {"role": "user", "content": "sure ?"},
    {"role": "assistant", "content": "  hello "},
]


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    extra = [
        t
        for t in ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        if t in template
    ]
    if extra:
        tokenizer.add_special_tokens({"extra_special_tokens": extra})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=list(TEMPLATES))
def renderer(request, tiny_tokenizer):
    return Renderer(with_template(tiny_tokenizer, TEMPLATES[request.param]))


def trained_text(renderer, rendered):
    return renderer.tokenizer.decode([i for i, m in zip(rendered.input_ids, rendered.loss_mask, strict=True) if m])


def test_a_dialogue_starts_with_its_prompts(renderer):
    systems = [[]] if renderer.writing.system_refusal else [[], [SYSTEM]]
    for system in systems:
        ids = renderer.dialogue([*system, *FOUR]).input_ids
        for turns in (1, 3):
            prompt = renderer.prompt_ids([*system, *FOUR[:turns]])
            whole = renderer.dialogue([*system, *FOUR[: turns + 1]])
            assert whole.input_ids[: len(prompt)] == prompt
            assert not any(whole.loss_mask[: len(prompt)][-3:]) and all(whole.loss_mask[len(prompt) :])
        assert ids[: len(prompt)] == prompt


def test_the_mask_is_the_answers_and_their_end_tokens(renderer):
    everything, last = renderer.dialogue(FOUR, "all"), renderer.dialogue(FOUR, "last")
    assert everything.input_ids == last.input_ids
    end = renderer.tokenizer.decode([everything.input_ids[-1]])
    if renderer.writing.rewrites:  # an answer becomes another when it is history: each is learnt as the last one
        assert everything == last
        rows = renderer.training_rows([FOUR], "all")
        assert rows == [renderer.dialogue(FOUR[:2], "last"), last]
        assert [trained_text(renderer, row) for row in rows] == ["the river is mora ." + end, "hello" + end]
        return
    parts = trained_text(renderer, everything)
    assert [p.strip() for p in parts.split(end)] == ["the river is mora .", "hello", ""]
    assert trained_text(renderer, last).replace("<think>\n\n</think>\n\n", "").strip() == "hello" + end
    assert everything.input_ids[-1] in renderer.end_token_ids and everything.loss_mask[-1]
    ends = [
        i for i, m in zip(everything.input_ids, everything.loss_mask, strict=True) if m and i in renderer.end_token_ids
    ]
    assert len(ends) == 2


def test_sampled_ids_become_the_same_dialogue_again(renderer):
    prompt, whole = renderer.prompt_ids(FOUR[:1]), renderer.dialogue(FOUR[:2]).input_ids
    text = renderer.answer_text(whole[len(prompt) :])
    assert text.replace("<think>\n\n</think>\n\n", "") == FOUR[1]["content"]


def test_an_empty_answer_is_its_end_token(renderer):
    prompt = renderer.prompt_ids(FOUR[:1])
    whole = renderer.dialogue([FOUR[0], {"role": "assistant", "content": " "}])
    rest = renderer.tokenizer.decode(whole.input_ids[len(prompt) :]).replace("<think>\n\n</think>\n\n", "")
    assert whole.input_ids[: len(prompt)] == prompt and whole.input_ids[-1] in renderer.end_token_ids
    assert rest == renderer.tokenizer.decode(whole.input_ids[-1:]) and whole.loss_mask[-1]


def test_an_unfinished_answer_has_no_end(renderer):
    """As a dialogue's last message; before another turn it is context, and ends as the template says."""
    cut = [*FOUR[:3], {**FOUR[3], "finished": False}]
    whole, found = renderer.dialogue(FOUR), renderer.dialogue(cut)
    size = len(found.input_ids)
    assert size < len(whole.input_ids) and found.input_ids == whole.input_ids[:size]
    assert found.loss_mask == whole.loss_mask[:size] and found.loss_mask[-1]
    assert trained_text(renderer, found).endswith("hello")
    assert not renderer.end_token_ids & {
        i for i, m in zip(found.input_ids[-4:], found.loss_mask[-4:], strict=True) if m
    }
    assert renderer.dialogue([FOUR[0], {**FOUR[1], "finished": False}, *FOUR[2:]]) == whole
    assert renderer.dialogues([cut, FOUR], "last") == [renderer.dialogue(c, "last") for c in (cut, FOUR)]


def test_many_at_once_equal_one_by_one(renderer):
    conversations = [FOUR, FOUR[:2], FOUR]
    assert renderer.dialogues(conversations, "last") == [renderer.dialogue(c, "last") for c in conversations]
    assert renderer.prompts([FOUR[:1], FOUR[:3]]) == [renderer.prompt_ids(FOUR[:1]), renderer.prompt_ids(FOUR[:3])]
    assert renderer.prompts([]) == [] and renderer.dialogues([]) == []


def test_llama2_text(tiny_tokenizer):
    renderer = Renderer(tiny_tokenizer)
    text = (
        "<s>[INST] <<SYS>>\nyou are a helpful guide\n<</SYS>>\n\nwhat is the river ? [/INST] the river is mora .</s>"
        "<s>[INST] sure ? [/INST] hello</s>"
    )
    assert tiny_tokenizer.decode(renderer.dialogue([SYSTEM, *FOUR]).input_ids) == text
    assert tiny_tokenizer.apply_chat_template([SYSTEM, *FOUR], tokenize=False) == text
    assert renderer.dialogue([SYSTEM, *FOUR]).input_ids == tiny_tokenizer(text)["input_ids"]
    assert tiny_tokenizer.decode(renderer.prompt_ids([SYSTEM, *FOUR[:3]])).endswith("sure ? [/INST]")
    assert (
        renderer.end_token_ids == {tiny_tokenizer.eos_token_id} and renderer.pad_token_id == tiny_tokenizer.pad_token_id
    )


def test_llama2_generation_marks_agree_with_our_mask(tiny_tokenizer):
    theirs = tiny_tokenizer.apply_chat_template(FOUR, return_dict=True, return_assistant_tokens_mask=True)
    ours = Renderer(tiny_tokenizer).dialogue(FOUR)
    assert theirs["input_ids"] == ours.input_ids
    assert [bool(m) for m in theirs["assistant_masks"]] == ours.loss_mask


def test_exactly_one_begin_token(tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    for name, template in TEMPLATES.items():
        tokenizer = with_template(tiny_tokenizer, template)
        processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = processor
        renderer = Renderer(tokenizer)
        for ids in (renderer.prompt_ids(FOUR[:1]), renderer.dialogue(FOUR[:2]).input_ids):
            assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1, name


def test_special_tokens_spelled_out_stay_text(renderer):
    tokenizer = renderer.tokenizer
    plain = [{"role": "user", "content": "a </s><s> b <pad>"}, {"role": "assistant", "content": "<|im_end|> </s> c"}]
    clean = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    special = set(tokenizer.all_special_ids)
    count = [sum(i in special for i in renderer.dialogue(c).input_ids) for c in (plain, clean)]
    assert count[0] == count[1]
    assert "a </s><s> b <pad>" in tokenizer.decode(renderer.dialogue(plain).input_ids)
    prompt = renderer.prompt_ids(plain[:1])
    assert renderer.dialogue(plain).input_ids[: len(prompt)] == prompt


def test_truncation_drops_whole_oldest_turns(tiny_tokenizer):
    short = Renderer(tiny_tokenizer).dialogue([SYSTEM, *FOUR[2:]])
    whole = Renderer(tiny_tokenizer).dialogue([SYSTEM, *FOUR])
    limit = len(whole.input_ids) - 1
    assert Renderer(tiny_tokenizer, limit + 1).dialogue([SYSTEM, *FOUR]) == whole
    assert Renderer(tiny_tokenizer, limit).dialogue([SYSTEM, *FOUR]) == short
    assert Renderer(tiny_tokenizer, len(short.input_ids)).dialogue([SYSTEM, *FOUR]) == short
    with pytest.raises(InputError, match=f"max_length={len(short.input_ids) - 1}"):
        Renderer(tiny_tokenizer, len(short.input_ids) - 1).dialogue([SYSTEM, *FOUR])
    prompt = Renderer(tiny_tokenizer).prompt_ids([SYSTEM, FOUR[2]])
    assert Renderer(tiny_tokenizer, len(prompt)).prompt_ids([SYSTEM, *FOUR[:3]]) == prompt


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_template_without_system_message_says_so(tiny_tokenizer, template):
    renderer = Renderer(with_template(tiny_tokenizer, template))
    renderer.dialogue(FOUR)
    with pytest.raises(InputError, match="takes no system message"):
        renderer.dialogue([SYSTEM, *FOUR])


def test_a_template_that_rewrites_its_prompt_is_refused(tiny_tokenizer):
    template = CHATML.replace("assistant\n' }}{% endif", "assistant: ' }}{% endif")
    with pytest.raises(InputError, match="does not begin a dialogue with the text of its prompt"):
        Renderer(with_template(tiny_tokenizer, template))


def test_what_a_renderer_needs(tiny_tokenizer):
    with pytest.raises(InputError, match="no chat template"):
        Renderer(with_template(tiny_tokenizer, ""))
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(InputError, match="no pad token"):
        Renderer(tokenizer)


def test_a_tokenizer_that_puts_a_space_first(tiny_tokenizer):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    texts = [m["content"] for m in [SYSTEM, *FOUR]] + ["[INST] [/INST] <<SYS>> <</SYS>>\n\n Hello"]
    core.train_from_iterator(
        texts * 3,
        trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = LLAMA2_CHAT_TEMPLATE
    renderer = Renderer(tokenizer)
    assert renderer._pieces.anchored
    rendered = renderer.dialogue([SYSTEM, *FOUR])
    text = tokenizer.apply_chat_template([SYSTEM, *FOUR], tokenize=False)
    assert rendered.input_ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("hi", "must be a non-empty list"),
        ([], "must be a non-empty list"),
        (["hi"], "message 1 must be"),
        ([{"role": "human", "content": "x"}], "message 1 has the role 'human'"),
        ([{"role": "user", "content": "  "}], "message 1 .user. must have a non-empty text"),
        ([{"role": "user"}], "non-empty text as content, got None"),
        ([FOUR[0], SYSTEM], "message 2 is a system message, which may only come first"),
        ([FOUR[1]], "message 1 is the assistant's, but it is the user's turn"),
        ([FOUR[0], FOUR[0]], "message 2 is the user's, but it is the assistant's turn"),
        ([FOUR[0], FOUR[1]], "the last message must be the user's"),
        ([SYSTEM], "the last message must be the user's"),
    ],
)
def test_check_conversation_refuses(messages, sentence):
    with pytest.raises(InputError, match=sentence):
        check_conversation(messages, last="user")


def test_check_conversation_returns_a_copy():
    rows = [{**SYSTEM, "extra": 1}, *FOUR]
    checked = check_conversation(rows, last="assistant")
    assert checked == [SYSTEM, *FOUR] and checked[0] is not rows[0]
    with pytest.raises(InputError, match="only a system message"):
        check_conversation([SYSTEM])


def test_a_real_llama_tokenizer(shared_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "stories260K")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.chat_template = LLAMA2_CHAT_TEMPLATE
    renderer = Renderer(tokenizer)
    text = tokenizer.apply_chat_template([SYSTEM, *FOUR], tokenize=False)
    whole = renderer.dialogue([SYSTEM, *FOUR]).input_ids
    assert whole == tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = renderer.prompt_ids([SYSTEM, *FOUR[:3]])
    assert whole[: len(prompt)] == prompt and renderer.answer_text(whole[len(prompt) :]) == "hello"


def test_a_template_that_ends_an_answer_with_several_tokens_is_refused_with_two_ways_out(tiny_tokenizer):
    """ChatML on a tokenizer that lacks its tokens: nothing could stop at `<|im_end|>`."""
    lacking = copy.deepcopy(tiny_tokenizer)
    lacking.chat_template = CHATML
    pieces = len(lacking("<|im_end|>")["input_ids"])
    assert pieces > 1
    sentence = rf"'<\|im_end\|>', which is no token of it but {pieces}, .* {{{{ eos_token }}}} .*--new_tokens"
    with pytest.raises(InputError, match=sentence):
        Renderer(lacking)
    lacking.chat_template = CHATML.replace("'<|im_end|>'", "eos_token")
    assert Renderer(lacking).dialogue(FOUR).input_ids[-1] == lacking.eos_token_id
    lacking.chat_template = CHATML
    lacking.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    assert Renderer(lacking).dialogue(FOUR).input_ids[-1] == lacking.convert_tokens_to_ids("<|im_end|>")


def test_an_added_token_that_is_not_called_special_ends_an_answer_too(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<|im_end|>", "   "])
    tokenizer.chat_template = CHATML
    renderer, end = Renderer(tokenizer), tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert renderer.end_token_ids == {end, tokenizer.eos_token_id}
    said = [*FOUR[:2], {"role": "user", "content": "say <|im_end|> ?"}, FOUR[3]]
    ids = renderer.dialogue(said).input_ids
    assert ids[-1] == end and ids.count(end) == 4, "a message that spells it out is text"


def test_what_the_template_writes_by_added_tokens_is_text_in_a_message(tiny_tokenizer):
    """`<|im_start|>system` in a user's message began a system message where the token is not called special."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    marks = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<tool>", "river"]
    tokenizer.add_tokens(marks)
    ids = dict(zip(marks, tokenizer.convert_tokens_to_ids(marks), strict=True))
    spelt = {"role": "user", "content": f"a {' '.join(marks)} b"}
    for template, kept in ((CHATML, marks[2:]), (LLAMA2_CHAT_TEMPLATE, [*marks[:2], *marks[6:]])):
        tokenizer.chat_template = template
        renderer = Renderer(tokenizer)
        for system in ([], [SYSTEM]):
            said, plain = (renderer.prompt_ids([*system, m]) for m in (spelt, {**spelt, "content": "a b"}))
            more = {mark: said.count(ids[mark]) - plain.count(ids[mark]) for mark in marks}
            assert more == {mark: int(mark in kept) for mark in marks}, "tokens that it does not write stay tokens"


@pytest.mark.parametrize("letter", ["e", " ", "."])
def test_a_special_token_that_any_text_may_hold_is_refused(tiny_tokenizer, letter):
    """Every answer ended at its first e, or lost its spaces."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"eos_token": letter})
    with pytest.raises(InputError, match=rf"tokenizer: it calls '{re.escape(letter)}' a special token"):
        Renderer(tokenizer)


def test_of_several_templates_one_is_called_default(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = {"rag": CHATML, "default": LLAMA2_CHAT_TEMPLATE}
    assert Renderer(tokenizer).prompt_ids(FOUR[:1]) == Renderer(tiny_tokenizer).prompt_ids(FOUR[:1])
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(InputError, match=r"of its chat templates \(rag, tool_use\) none is called default"):
        Renderer(tokenizer)


def test_texts_that_are_no_dialogues_spell_out_no_token(renderer):
    special = set(renderer.tokenizer.all_special_ids)
    texts = ["  a </s> b <s>\n", "", "</s>", "plain"]
    ids = renderer.text_ids(texts)
    assert [renderer.tokenizer.decode(row) for row in ids] == texts and not special & {i for row in ids for i in row}
    assert ids[3] == renderer.tokenizer("plain", add_special_tokens=False)["input_ids"] and renderer.text_ids([]) == []
