"""The routes of the page on which people write: prompts, demonstrations, attempts of the red team."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

from rlhf.annotation.page.fields import name_of, number_of, seconds_of
from rlhf.annotation.page.rendering import render
from rlhf.annotation.store import Entry, Store
from rlhf.annotation.writing import CATEGORIES, STYLES, Writing, asked, dialogue_after
from rlhf.conversation import Conversation, check_conversation
from rlhf.data.rows import Domain
from rlhf.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

LONGEST_TEXT = 20_000  # characters
_KEY = re.compile(r"[0-9a-f-]{16,40}")


def add_writing(app: FastAPI, store: Store, writing: Writing) -> None:
    """Add what the mode needs; every other route of writing stays unknown to the server."""

    @app.get("/api/dialogue")
    def dialogue(annotator: str, after: int | None = None) -> dict[str, Any]:
        name = name_of(annotator)
        waiting = store.open_attempt(name) if writing.mode == "red-team" else None
        said = waiting.messages if waiting else dialogue_after(store, writing.mode, name, after)
        return {"messages": _shown(said), "attempt": waiting and _attempt(waiting), "mine": _mine(store, writing, name)}

    if writing.mode == "write":

        @app.post("/api/ask")
        def ask(body: dict[str, Any]) -> dict[str, Any]:
            name, messages = _asked(store, writing, body)
            return {"item": writing.ask(store, name, messages, _domain(body), _key(body, name))}

    if writing.mode == "demonstrate":

        @app.post("/api/demonstrate")
        def demonstrate(body: dict[str, Any]) -> dict[str, Any]:
            name, messages = _asked(store, writing, body)
            answer = check_conversation([*messages, {"role": "assistant", "content": _text(body, "answer")}])[-1]
            entry = Entry(
                "demonstration", name, messages, answer["content"], _domain(body), {}, seconds=seconds_of(body)
            )
            return {"entry": store.add_entry(entry, _key(body, name)).number, "mine": _mine(store, writing, name)}

    if writing.mode == "red-team":

        @app.post("/api/attempt")
        def attempt(body: dict[str, Any]) -> dict[str, Any]:
            name, messages = _asked(store, writing, body)
            about = {"category": _one_of(body, "category", CATEGORIES), "style": _one_of(body, "style", STYLES)}
            entry = writing.attempt(store, name, messages, about, _key(body, name))
            return {"messages": _shown(entry.messages), "attempt": _attempt(entry)}

        @app.post("/api/verdict")
        def verdict(body: dict[str, Any]) -> dict[str, Any]:
            name, violation = name_of(body.get("annotator")), body.get("violation")
            if not isinstance(violation, bool):
                raise InputError(f"violation: must be true or false, got {violation!r}")
            better = _text(body, "better") if violation and str(body.get("better") or "").strip() else ""
            entry = store.judge_entry(number_of(body, "entry"), name, violation, better, seconds_of(body))
            return {"entry": entry.number, "mine": _mine(store, writing, name)}


def _asked(store: Store, writing: Writing, body: dict[str, Any]) -> tuple[str, Conversation]:
    """The annotator, and the dialogue that their text makes."""
    name = name_of(body.get("annotator"))
    after = None if body.get("after") is None else number_of(body, "after")
    return name, asked(dialogue_after(store, writing.mode, name, after), _text(body, "text"))


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{field}: write something first")
    if len(value) > LONGEST_TEXT:
        raise InputError(f"{field}: may have {LONGEST_TEXT} characters, and has {len(value)}")
    return value.strip()


def _domain(body: dict[str, Any]) -> Domain:
    return _one_of(body, "domain", get_args(Domain))  # type: ignore[return-value]


def _one_of(body: dict[str, Any], field: str, allowed: tuple[str, ...]) -> str:
    value = body.get(field)
    if value not in allowed:
        raise InputError(f"{field}: must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def _key(body: dict[str, Any], name: str) -> str:
    """Of what is sent; the same one again is the same text, e.g. where the first answer did not arrive."""
    value = body.get("key")
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise InputError("key: must be 16 to 40 hex digits")
    return f"{name} {value}"


def _shown(messages: Conversation) -> list[dict[str, str]]:
    return [{"role": message["role"], "html": render(message["content"])} for message in messages]


def _attempt(entry: Entry) -> dict[str, Any]:
    return {"entry": entry.number, "answer": render(entry.answer)}


def _mine(store: Store, writing: Writing, name: str) -> dict[str, int]:
    """How much this annotator has written, and of the red team how many violations."""
    if writing.mode == "write":
        return {"written": store.progress(annotator=name).kept}
    own = list(store.entries("demonstration" if writing.mode == "demonstrate" else "attempt", name))
    return {"written": len(own)} | (
        {"violations": sum(bool(entry.violation) for entry in own)} if writing.mode == "red-team" else {}
    )
