"""Chat templates as text: Llama 2's own, and what is written into one so that it is saved with the checkpoint.

A setting of a template that stood in a config alone would be lost between two stages, and in whatever serves the model
afterwards. So `chat_template_kwargs` are written into the template itself, as defaults of its variables: every stage
saves it with its tokenizer, and transformers, vllm and trl render as we do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import InputError

# Llama 2's chat format (decision 6), with the marks that trl's `assistant_only_loss` needs. The space before the
# answer belongs to the answer (byte-level BPE carries it in the first token), and the end token follows it at once.
LLAMA2_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] == 'system' -%}
{{- raise_exception('user and assistant must take turns, the user first') -}}
{%- elif message['role'] == 'user' -%}
{{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' -}}
{%- else -%}
{%- generation -%}{{- ' ' + message['content'] | trim + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}"""


def read_chat_template(name: str | None) -> str | None:
    """The chat template called `llama2`, or the content of a file; None for None. InputError for neither."""
    if name is None or name == "llama2":
        return LLAMA2_CHAT_TEMPLATE if name else None
    if not Path(name).is_file():
        raise InputError(f"chat_template: {name} is no file; give llama2, or a file with a Jinja template")
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"chat_template: {name} is no UTF-8 text ({error}); save it as UTF-8") from error


ENABLE_THINKING, MERGE_SYSTEM = "enable_thinking", "merge_system"
"""The two of `chat_template_kwargs` that mean something in every template: see `check_kwargs`."""


_given: dict[str, Any] = {}


def give_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Set the `chat_template_kwargs` of this process: those of the stage that it runs, whose config names them once.

    `rlhf.models.policy.load_tokenizer` writes them into the template of every policy that is loaded from now on. A
    reward model keeps what it was trained with.
    """
    check_kwargs(kwargs)
    _given.clear()
    _given.update(kwargs)


def given_kwargs() -> dict[str, Any]:
    """What `give_kwargs` set last."""
    return dict(_given)


def check_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Raise InputError unless `chat_template_kwargs` are variables of a template with plain values.

    Any name goes that the template knows (`reasoning_effort`, `date_string`, …). Two mean the same in every template:

    - enable_thinking: false: an answer begins at once, without thoughts, also in a template without that variable.
    - merge_system: true: where the template takes no system message, its text begins the first user's message.
    """
    for name, value in kwargs.items():
        field = f"chat_template_kwargs.{name}"
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in ("messages", "add_generation_prompt", "tools"):
            raise InputError(f"{field}: must be the name of a variable of the chat template, e.g. enable_thinking")
        if name in (ENABLE_THINKING, MERGE_SYSTEM) and not isinstance(value, bool):
            raise InputError(f"{field}: must be true or false, got {value!r}")
        if not isinstance(value, (bool, int, float, str)):
            raise InputError(f"{field}: must be true, false, a number or a text, got {value!r}")


def with_kwargs(template: str, kwargs: Mapping[str, Any]) -> str:
    """The template with these as the defaults of its variables; the newest counts, and the same are written once."""
    check_kwargs(kwargs)
    lines = [_default(name, value) for name, value in sorted(kwargs.items()) if name != MERGE_SYSTEM]
    head = "".join(lines)
    return template if template.startswith(head) else head + template


def _default(name: str, value: Any) -> str:
    literal = json.dumps(value, ensure_ascii=False)
    return f"{{%- set {name} = {name} if {name} is defined else {literal} %}}"


def with_merged_system(template: str) -> str:
    """The template, given a first user's message that begins with the system message's text."""
    return (
        "{%- if messages[0]['role'] == 'system' and messages | length > 1 %}"
        "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
        " + messages[2:] %}{%- endif %}"
    ) + template


def with_generation_prompt(template: str, text: str) -> str:
    """The template, which writes `text` in the place of its own generation prompt."""
    literal = json.dumps(text, ensure_ascii=False)
    return (
        "{%- set answer_is_next = add_generation_prompt is defined and add_generation_prompt %}"
        "{%- set add_generation_prompt = false %}"
        f"{template.removesuffix(chr(10))}{{% if answer_is_next %}}{{{{- {literal} }}}}{{% endif %}}"
    )
