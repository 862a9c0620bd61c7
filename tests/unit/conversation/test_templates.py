"""The chat templates of today, as trl's package ships them: exact masks, one round trip, and the table of the docs."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rlhf.conversation import Conversation, Rendered, Renderer, apply_kwargs, read_chat_template, with_thoughts
from rlhf.conversation.template import with_kwargs
from rlhf.errors import InputError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "templates.md"
SPECIAL = re.compile(r"<\|[\w\"]+\|?>|<\w+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_\w+>|<end_of_utterance>|\[gMASK\]|<sop>")

ASKED: Conversation = [
    {"role": "user", "content": "who ?"},
    {"role": "assistant", "content": "the river"},
    {"role": "user", "content": "sure ?"},
]
ANSWER, THOUGHTS = "mora .", "let me think"
PLAIN: Conversation = [*ASKED, {"role": "assistant", "content": ANSWER}]
THOUGHT: Conversation = [*ASKED, {"role": "assistant", "content": with_thoughts(THOUGHTS, ANSWER)}]

# What a last answer is trained on, made by hand, behind a prompt that ends with `prompt`: without thoughts, with some.
THINK = "<think>\nlet me think\n</think>\n\nmora ."
EXPECTED = {  # template -> (the prompt's end, the answer, the answer with thoughts)
    "cohere2": ("<|CHATBOT_TOKEN|><|START_RESPONSE|>", "mora .<|END_RESPONSE|>", THINK + "<|END_RESPONSE|>"),
    "deepseek_r1_distill": (
        "<｜Assistant｜><think>\n",
        "\n</think>\n\nmora .<｜end▁of▁sentence｜>",
        "let me think\n</think>\n\nmora .<｜end▁of▁sentence｜>",
    ),
    "deepseekv3": (
        "<｜Assistant｜><think>\n",
        "\n</think>\n\nmora .<｜end▁of▁sentence｜>",
        "let me think\n</think>\n\nmora .<｜end▁of▁sentence｜>",
    ),
    "gemma": ("<start_of_turn>model\n", "mora .<end_of_turn>", THINK + "<end_of_turn>"),
    "gemma4_v5": (
        "<|turn>model\n",
        "mora .<turn|>",
        "<|channel>thought\nlet me think\n<channel|>mora .<turn|>",
    ),
    "glm4moe": (
        "<|assistant|>",
        "\n<think></think>\nmora .</s>",
        "\n<think>let me think</think>\nmora .</s>",
    ),
    "gptoss": (
        "<|start|>assistant",
        "<|channel|>final<|message|>mora .<|return|>",
        "<|channel|>analysis<|message|>let me think<|end|>"
        "<|start|>assistant<|channel|>final<|message|>mora .<|return|>",
    ),
    "lfm2_2_5": (
        "<|im_start|>assistant\n",
        "mora .<|im_end|>",
        "<think>let me think</think>mora .<|im_end|>",
    ),
    "llama3_2": ("assistant<|end_header_id|>\n\n", "mora .<|eot_id|>", THINK + "<|eot_id|>"),
    "llava_next": (" [/INST]", " mora .</s>", THINK + "</s>"),
    "muse_glimmer": (
        "<|start|>assistant",
        " to=user<|message|>mora .<|eot|>",
        " to=self<|message|>let me think<|eom|><|start|>assistant to=user<|message|>mora .<|eot|>",
    ),
    "nemotron_3_nano": (
        "<|im_start|>assistant\n<think>\n",
        "\n</think>\nmora .<|im_end|>",
        "let me think\n</think>\nmora .<|im_end|>",
    ),
    "phi3": ("<|assistant|>\n", "mora .<|end|>", THINK + "<|end|>"),
    "qwen2_5": ("<|im_start|>assistant\n", "mora .<|im_end|>", THINK + "<|im_end|>"),
    "qwen3": ("<|im_start|>assistant\n", "<think>\n\n</think>\n\nmora .<|im_end|>", THINK + "<|im_end|>"),
    "qwen3_5_think": (
        "<|im_start|>assistant\n<think>\n",
        "\n</think>\n\nmora .<|im_end|>",
        "let me think\n</think>\n\nmora .<|im_end|>",
    ),
    "qwen3_5_nothink": (
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "mora .<|im_end|>",
        THINK + "<|im_end|>",
    ),
    "smolvlm": ("Assistant:", " mora .<end_of_utterance>", THINK + "<end_of_utterance>"),
}


@cache
def templates() -> dict[str, str]:
    folder = pytest.importorskip("trl").__path__[0]
    files = sorted(Path(folder, "chat_templates").glob("*.jinja"))  # trl's own variants for training look alike
    return {file.stem: file.read_text(encoding="utf-8") for file in files if not file.stem.endswith("_training")}


def tokenizer_for(template: str, tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the tokens that a template writes; thoughts' marks are added ones, not called special."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": sorted(set(SPECIAL.findall(template)))})
    tokenizer.add_tokens([mark for mark in ("<think>", "</think>") if mark in template])
    tokenizer.chat_template = template
    return tokenizer


def text_of(renderer: Renderer, row: Rendered) -> tuple[str, str]:
    """(what is not trained, what is), the latter being the row's end."""
    first = row.loss_mask.index(True)
    assert all(row.loss_mask[first:])
    parts = row.input_ids[:first], row.input_ids[first:]
    return tuple(renderer.tokenizer.decode(ids) for ids in parts)  # type: ignore[return-value]


def verdict(renderer: Renderer) -> str:
    """A template's line in the docs."""
    writing = renderer.writing
    found = "works; thoughts are parted from answers" if writing.thinks else "works"
    if writing.rewrites:
        found += "; a dialogue is a row for each of its answers"
    return found + ("; system messages by `merge_system`" if writing.system_refusal else "")


def test_every_template_of_trl_works_and_the_docs_say_how(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Prompt and dialogue agree in ids, sampled ids read back as answer and thoughts, the mask is the answer's; the
    same without thoughts. Each template is a line of the page, and each line is one."""
    lines = []
    for name, template in templates().items():
        tokenizer = tokenizer_for(template, tiny_tokenizer)
        renderer = Renderer(tokenizer)
        apply_kwargs(tokenizer, {"enable_thinking": False})
        at_once = Renderer(tokenizer)
        lines.append(f"| {name} | {verdict(renderer)} |")
        for each, dialogue in ((renderer, PLAIN), (renderer, THOUGHT), (at_once, PLAIN)):
            prompt, row = each.prompt_ids(ASKED), each.dialogue(dialogue, "last")
            assert row.input_ids[: len(prompt)] == prompt, name
            assert row.loss_mask == [i >= len(prompt) for i in range(len(row.input_ids))], name
            assert row.input_ids[-1] in each.end_token_ids, name
            answer = each.answer(row.input_ids[len(prompt) :])
            assert answer == (ANSWER, THOUGHTS if dialogue is THOUGHT else ""), name
        assert not at_once.writing.lead.strip(), f"{name}: an answer begins at once"
        assert text_of(at_once, at_once.dialogue(PLAIN, "last"))[1].strip().startswith(ANSWER), name
    page = PAGE.read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| ") and line.split("|")[1].strip() in templates()]
    assert table == lines, "docs/templates.md should have this table:\n" + "\n".join(lines)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_trained_is_what_was_expected_by_hand(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    renderer = Renderer(tokenizer_for(templates()[name], tiny_tokenizer))
    prompt, answer, with_thought = EXPECTED[name]
    for dialogue, wanted in ((PLAIN, answer), (THOUGHT, with_thought)):
        before, trained = text_of(renderer, renderer.dialogue(dialogue, "last"))
        assert before.endswith(prompt) and trained == wanted
    cut_off = {**THOUGHT[-1], "content": with_thoughts(THOUGHTS, ""), "finished": False}
    row = renderer.dialogue([*ASKED, cut_off], "last")
    sampled = row.input_ids[len(renderer.prompt_ids(ASKED)) :]
    assert renderer.answer(sampled).text == "" or not renderer.writing.thinks, "an answer that is all thoughts is empty"


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3", "glm4moe", "gptoss", "gemma3", "phi3_5"])
def test_a_dialogue_is_the_template_s_own(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """So a foreign reward model reads what it was trained on; the text behind the end token belongs to no answer."""
    tokenizer = tokenizer_for(templates()[name], tiny_tokenizer)
    renderer = Renderer(tokenizer)
    ours = tokenizer.decode(renderer.dialogue(PLAIN).input_ids)
    theirs = tokenizer.apply_chat_template(PLAIN, tokenize=False)
    if renderer.writing.added_end:  # it has no end token of its own
        ours = ours.replace(renderer.writing.added_end, "")
    assert theirs.startswith(ours) and not theirs.removeprefix(ours).replace("</s>", "").strip()


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "deepseek_r1_distill"])
def test_a_dialogue_becomes_a_row_for_each_answer(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Each is learnt as it is drawn: behind its own prompt, with no thought in what came before."""
    renderer = Renderer(tokenizer_for(templates()[name], tiny_tokenizer))
    first: Conversation = [ASKED[0], {"role": "assistant", "content": with_thoughts("hm", "the river")}]
    rows = renderer.training_rows([[*first, *THOUGHT[2:]]], "all")
    assert rows == [renderer.dialogue(first, "last"), renderer.dialogue(THOUGHT, "last")]
    context: Conversation = [first[0], {**first[1], "train": False}, *THOUGHT[2:]]
    assert renderer.training_rows([context], "all") == rows[1:]
    assert renderer.training_rows([[*first, *THOUGHT[2:]]], "last") == rows[1:]


def test_a_template_without_end_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers lets `range` count to 100,000: two of them in one another take hours."""
    monkeypatch.setattr("rlhf.conversation.writing.PROBE_SECONDS", 0.2)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    loop, end = "{% for i in range(99999) %}", "{% endfor %}"
    tokenizer.chat_template = f"{loop}{loop}{end}{end}{tokenizer.chat_template}"
    with pytest.raises(InputError, match=r"its chat template has not written a short dialogue after 0\.2 seconds"):
        Renderer(tokenizer)
    assert Renderer(tiny_tokenizer), "the next one has its own time"


def test_a_tokenizer_without_vocabulary_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    content = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    content["model"] |= {"vocab": {}, "merges": []}
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **special)
    empty.chat_template = tiny_tokenizer.chat_template
    with pytest.raises(InputError, match="its vocabulary has no token of a plain text"):
        Renderer(empty)


def test_kwargs_are_saved_with_the_template(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer = tokenizer_for(templates()["qwen3"], tiny_tokenizer)
    apply_kwargs(tokenizer, {"enable_thinking": False})
    tokenizer.save_pretrained(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    prompt = saved.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert saved.decode(Renderer(saved).prompt_ids(ASKED)) == prompt
    asked = saved.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert asked.endswith("<|im_start|>assistant\n"), "whoever serves it can still ask for thoughts"
    apply_kwargs(saved, {"enable_thinking": False})
    assert saved.chat_template == tokenizer.chat_template, "written once"


def test_kwargs_are_any_variable_of_the_template(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(templates()["gptoss"], tiny_tokenizer)
    apply_kwargs(tokenizer, {"reasoning_effort": "low", "model_identity": 'I am "é"'})
    text = tokenizer.decode(Renderer(tokenizer).prompt_ids(ASKED))
    assert "Reasoning: low" in text and 'I am "é"' in text


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"messages": 1}, r"chat_template_kwargs.messages: must be the name of a variable"),
        ({"a b": 1}, r"chat_template_kwargs.a b: must be the name of a variable"),
        ({"enable_thinking": "no"}, r"enable_thinking: must be true or false, got 'no'"),
        ({"level": None}, r"level: must be true, false, a number or a text, got None"),
    ],
)
def test_kwargs_that_are_none(kwargs: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        with_kwargs("", kwargs)


def test_system_text_goes_into_the_user_s_message_by_option(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(templates()["gemma"], tiny_tokenizer)
    said: Conversation = [{"role": "system", "content": "be brief"}, *ASKED]
    with pytest.raises(InputError, match=r"takes no system message .* set chat_template_kwargs {merge_system: true}"):
        Renderer(tokenizer).prompt_ids(said)
    plain = Renderer(tokenizer).prompt_ids(ASKED)
    apply_kwargs(tokenizer, {"merge_system": True})
    merged = Renderer(tokenizer)
    assert "user\nbe brief\n\nwho ?<end_of_turn>" in tokenizer.decode(merged.prompt_ids(said))
    assert merged.prompt_ids(ASKED) == plain
    before = tokenizer.chat_template
    apply_kwargs(tokenizer, {"merge_system": True})
    assert tokenizer.chat_template == before, "where system messages are taken nothing is changed"


def test_a_template_without_generation_prompt_keeps_its_header_out_of_the_answer(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    )
    tokenizer = tokenizer_for(template, tiny_tokenizer)
    renderer = Renderer(tokenizer)
    before, trained = text_of(renderer, renderer.dialogue(PLAIN, "last"))
    assert before.endswith("<|im_start|>assistant\n") and trained == "mora .<|im_end|>"
    assert renderer.prompt_ids(ASKED) == tokenizer(before, add_special_tokens=False)["input_ids"]
    tokenizer.chat_template = renderer.writing.template  # as it is saved
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert text == before and not tokenizer.apply_chat_template(ASKED, tokenize=False).endswith("assistant\n")


def test_a_template_s_file_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(InputError, match=r"^chat_template: .*t\.jinja is no UTF-8 text"):
        read_chat_template(str(tmp_path / "t.jinja"))
