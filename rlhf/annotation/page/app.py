"""The page's server: what it shows and what it keeps. Every answer of /api is JSON; the page's script asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any

from rlhf.annotation.owner import annotator_figures
from rlhf.annotation.page.fields import name_of, number_of, seconds_of
from rlhf.annotation.page.guard import Guard
from rlhf.annotation.page.rendering import render, render_guidelines
from rlhf.annotation.page.writing import add_writing
from rlhf.annotation.protocol import Judgement
from rlhf.annotation.scales import EVALUATION, SCALES, Scale
from rlhf.annotation.store import FullError, JudgedError, Shown, Store
from rlhf.annotation.writing import BATCH, CATEGORIES, STYLES, Mode, Writing, written_rows
from rlhf.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

SKIP_REASONS = (
    "both answers are equally good",
    "both answers are unreadable",
    "I know too little of the subject",
    "I prefer an answer that is unsafe to one that is safe",
    "the prompt is unclear",
)
FILES = {"annotate.js": "text/javascript", "write.js": "text/javascript", "annotate.css": "text/css"}


def default_guidelines(scale: Scale, mode: Mode | None = None) -> str:
    """The guidelines that are shown where the user has none, Markdown."""
    if mode is not None:
        writing = _file(f"guidelines_{mode.replace('-', '_')}.md")
        return writing + "\n" + _file("guidelines.md") if mode == "write" else writing
    return _file("guidelines_evaluation.md" if scale is EVALUATION else "guidelines.md")


def make_app(
    store: Store, token: str, guidelines: str, writing: Writing | None = None, owner: str | None = None
) -> Guard:
    """The server of one store.

    Args:
        store: whose pairs are shown and which keeps the judgements; open it `durable`.
        token: the first part of every path.
        guidelines: Markdown, shown beside the pairs.
        writing: what people write here; None: they judge alone.
        owner: the first part of every path of the owner's page; None: there is none.
    """
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from jinja2 import Environment

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    template = Environment(autoescape=True).from_string(_file("page.html.j2"))
    page = template.render(
        guidelines=render_guidelines(guidelines),
        skip_reasons=SKIP_REASONS,
        scales=SCALES.values(),
        mode=writing.mode if writing else "judge",
        preferences=not any(store.scale(batch) is EVALUATION for batch in store.batches(people=True)),
        categories=CATEGORIES,
        styles=STYLES,
    )
    files = {name: _file(name) for name in FILES}

    @app.exception_handler(InputError)
    def refused(request: Any, error: InputError) -> JSONResponse:
        return JSONResponse(
            {"error": str(error)}, status_code=409 if isinstance(error, FullError | JudgedError) else 422
        )

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/file/{name}")
    def file(name: str) -> Response:
        return Response(files[name], media_type=FILES[name]) if name in files else Response(status_code=404)

    @app.get("/api/next")
    def next_pair(annotator: str, after: int | None = None) -> dict[str, Any]:
        name = name_of(annotator)
        if writing is None:
            return _state(store, name, store.lease(name, after=after))
        if writing.mode != "write":
            state = _state(store, name, None)
            state["progress"]["newest"] = 0  # nothing is judged here, and so no judgement is taken back
            return state
        own = BATCH in store.batches()  # on this page nobody judges what others ask about
        return _state(store, name, store.lease(name, after=after, batch=BATCH) if own else None)

    @app.post("/api/judge")
    def judge(body: dict[str, Any]) -> dict[str, Any]:
        name = name_of(body.get("annotator"))
        shown = store.shown(number_of(body, "item"), name)
        store.keep(shown.batch, judgement_of(body, shown, name))
        return _state(store, name, None)

    @app.post("/api/undo")
    def undo(body: dict[str, Any]) -> dict[str, Any]:
        name = name_of(body.get("annotator"))
        undone = store.undo(name, number=number_of(body, "judgement"))
        return _state(store, name, undone and undone[0]) | {"was": undone and _as_shown(*undone)}

    @app.get("/export.jsonl")
    def export() -> StreamingResponse:
        return StreamingResponse(export_lines(store), media_type="application/x-ndjson")

    if writing is not None:
        add_writing(app, store, writing)
    return Guard({token: app} | ({} if owner is None else {owner: owner_app(store)}))


def owner_app(store: Store) -> FastAPI:
    """The page of whoever asks people: figures by annotator, to look at alone."""
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse, Response
    from jinja2 import Environment

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    template = Environment(autoescape=True).from_string(_file("owner.html.j2"))

    @app.get("/")
    def index() -> HTMLResponse:
        counts = store.counts("")
        return HTMLResponse(template.render(figures=annotator_figures(store), kept=counts.kept, wanted=counts.wanted))

    @app.get("/figures.json")
    def figures() -> dict[str, Any]:
        return dict(annotator_figures(store))

    @app.get("/file/annotate.css")
    def style() -> Response:
        return Response(_file("annotate.css"), media_type="text/css")

    return app


def export_lines(store: Store, rows: str = "preferences") -> Iterator[str]:
    """Rows of what people judged and wrote (`rlhf.annotation.writing.written_rows`) as JSON lines."""
    import json

    yield from (json.dumps(row, ensure_ascii=False) + "\n" for row in written_rows(store, rows))


def judgement_of(body: dict[str, Any], shown: Shown, annotator: str) -> Judgement:
    """The judgement that the page's script sends: of left and right, which the store knows as a and b.

    Raises:
        InputError: a field that is not what it should be; for a pair of domain safety also a missing safety label.
    """
    common: dict[str, Any] = {"left": shown.left, "seconds": seconds_of(body)}
    if body.get("skipped"):
        return Judgement(shown.pair.id, annotator, None, skipped=str(body["skipped"])[:500], **common)
    choice, strength = body.get("choice"), body.get("strength")
    if choice == "tie" and shown.scale.tie:
        return Judgement(shown.pair.id, annotator, "tie", **common)
    if choice not in ("left", "right"):
        raise InputError(f"choice: must be left or right, got {choice!r}")
    if strength is None:
        raise InputError("strength: say how much better the answer is")
    other = "right" if choice == "left" else "left"
    labels = body.get(f"{choice}_safe"), body.get(f"{other}_safe")
    if shown.scale.safety and shown.pair.domain == "safety" and None in labels:
        raise InputError("safety: say of both answers whether they are safe")
    chosen = shown.left if choice == "left" else "b" if shown.left == "a" else "a"
    return Judgement(shown.pair.id, annotator, chosen, strength, *labels, **common)


def _as_shown(shown: Shown, judgement: Judgement) -> dict[str, Any]:
    """A judgement in the page's words, left and right."""
    if judgement.choice is None:
        return {"skipped": judgement.skipped}
    if judgement.choice == "tie":
        return {"choice": "tie", "strength": None}
    chosen, other = ("left", "right") if judgement.choice == shown.left else ("right", "left")
    labels = {f"{chosen}_safe": judgement.chosen_safe, f"{other}_safe": judgement.rejected_safe}
    return {"choice": chosen, "strength": judgement.strength, **labels}


def _state(store: Store, annotator: str, shown: Shown | None) -> dict[str, Any]:
    counts = store.counts(annotator)
    progress = {"mine": counts.mine, "kept": counts.kept, "wanted": counts.wanted, "newest": counts.newest}
    if shown is None:
        return {"pair": None, "progress": progress}
    left, right = (shown.pair.a, shown.pair.b) if shown.left == "a" else (shown.pair.b, shown.pair.a)
    pair = {
        "item": shown.item,
        "domain": shown.pair.domain,
        "scale": shown.scale.name,
        "question": shown.scale.questions[shown.pair.domain],
        "messages": [{"role": m["role"], "html": render(m["content"])} for m in shown.pair.messages],
        "left": render(left),
        "right": render(right),
    }
    return {"pair": pair, "progress": progress}


def _file(name: str) -> str:
    return resources.files("rlhf.annotation.page").joinpath(name).read_text(encoding="utf-8")
