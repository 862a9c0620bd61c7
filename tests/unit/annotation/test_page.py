"""The page's server: what it keeps, and what it refuses."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from rlhf.annotation.page.app import default_guidelines, make_app
from rlhf.annotation.page.local import listen
from rlhf.annotation.page.rendering import LONGEST_MARKDOWN, render
from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.scales import PREFERENCE
from rlhf.annotation.store import Store
from rlhf.data.rows import Preference
from rlhf.errors import InputError

TOKEN = "secret-token"
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)" onclick="alert(1)">here</a>',
    "<style>body{display:none}</style><iframe src='//evil.example'></iframe>",
    "![picture](https://evil.example/pixel.png)",
    "[link](https://evil.example) [js](javascript:alert(1)) <https://evil.example>",
    "[ref]\n\n[ref]: https://evil.example 'title'",
    '```html" onmouseover="alert(1)\n<script>alert(1)</script>\n```',
    "<div>\n*html block*\n</div>",
    "</div></section><script src=//evil.example/x.js></script>",
    "&lt;script&gt; &#60;script&#62;",
]


def pairs(count: int, **fields: Any) -> list[Pair]:
    ask = [{"role": "user", "content": "Why?"}]
    return [Pair(ask, f"first {i}", f"second {i}", id=f"p{i}", **fields) for i in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "labels.sqlite") as store:
        yield store


@pytest.fixture
def client(store: Store) -> TestClient:
    return TestClient(make_app(store, TOKEN, "# Mine\n\nbe *fair*"), base_url="http://127.0.0.1:8642")


def get(client: TestClient, path: str, **keywords: Any) -> Any:
    return client.get(f"/{TOKEN}/{path}", **keywords)


def post(client: TestClient, path: str, **body: Any) -> Any:
    return client.post(f"/{TOKEN}/api/{path}", json=body)


def judge(client: TestClient, item: int, annotator: str = "ann", **body: Any) -> Any:
    given = {"choice": "left", "strength": "better", "left_safe": None, "right_safe": None, "seconds": 1.5}
    return post(client, "judge", annotator=annotator, item=item, **given | body)


def test_a_judgement_of_left_and_right_is_kept_as_a_and_b(store: Store, client: TestClient) -> None:
    store.add_batch("v1", pairs(20, domain="safety"))
    for number in range(20):
        shown = get(client, "api/next?annotator=ann").json()["pair"]
        side = "left" if "first" in shown["left"] else "right"  # always answer a
        other = "right" if side == "left" else "left"
        answer = judge(client, shown["item"], choice=side, **{f"{side}_safe": True, f"{other}_safe": False})
        assert answer.status_code == 200 and answer.json()["progress"]["kept"] == number + 1
    kept = [judgement for *_, judgement in store.judged()]
    assert {(j.choice, j.strength, j.chosen_safe, j.rejected_safe, j.seconds) for j in kept} == {
        ("a", "better", True, False, 1.5)
    }
    assert {j.left for j in kept} == {"a", "b"}, "and it is kept which side the answer was on"
    assert get(client, "api/next?annotator=ann").json()["pair"] is None
    exported = [Preference.from_dict(json.loads(line)) for line in get(client, "export.jsonl").text.splitlines()]
    assert [(row.id, row.chosen, row.source) for row in exported] == [(f"p{i}", f"first {i}", "ann") for i in range(20)]


def test_the_next_one_is_fetched_ahead_and_a_request_sent_twice_counts_once(store: Store, client: TestClient) -> None:
    store.add_batch("v1", pairs(3))
    first = get(client, "api/next?annotator=ann").json()["pair"]
    second = get(client, f"api/next?annotator=ann&after={first['item']}").json()["pair"]
    assert first["item"] != second["item"]
    answers = [judge(client, first["item"]) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].json()["progress"]["kept"] == 1
    assert get(client, "api/next?annotator=ann").json()["pair"] == second


def test_undo_gives_the_pair_back_with_what_was_said(store: Store, client: TestClient) -> None:
    store.add_batch("v1", pairs(2))
    item = get(client, "api/next?annotator=ann").json()["pair"]["item"]
    newest = judge(client, item, choice="right", strength="slightly", left_safe=True, right_safe=True).json()
    for _ in range(2):
        undone = post(client, "undo", annotator="ann", judgement=newest["progress"]["newest"]).json()
        assert undone["pair"]["item"] == item and undone["progress"]["kept"] == 0
        assert undone["was"] == {"choice": "right", "strength": "slightly", "left_safe": True, "right_safe": True}
    assert post(client, "undo", annotator="bob", judgement=1).json()["pair"] is None, "not another's"


def test_a_skip_has_its_reason(store: Store, client: TestClient) -> None:
    store.add_batch("v1", pairs(1))
    item = get(client, "api/next?annotator=ann").json()["pair"]["item"]
    assert judge(client, item, choice=None, skipped="unclear").status_code == 200
    ((*_, kept),) = store.judged()
    assert (kept.choice, kept.skipped) == (None, "unclear")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"choice": "both"}, "choice: "),
        ({"strength": None}, "strength: "),
        ({"strength": "hugely"}, "strength: "),
        ({"left_safe": None}, "safety: "),
        ({"left_safe": "yes"}, "chosen_safe: "),
        ({"left_safe": False}, "chosen_safe, rejected_safe: an unsafe answer cannot be chosen"),
        ({"seconds": -1}, "seconds: "),
        ({"seconds": "1"}, "seconds: "),
        ({"item": 99}, "item: "),
        ({"item": "1"}, "item: "),
        ({"item": 2**70}, "item: "),
        ({"annotator": " "}, "annotator: "),
        ({"annotator": "x" * 61}, "annotator: "),
        ({"annotator": "a\nb"}, "annotator: "),
    ],
)
def test_what_does_not_fit_is_refused_and_not_kept(
    store: Store, client: TestClient, body: dict[str, Any], message: str
) -> None:
    store.add_batch("v1", pairs(1, domain="safety"))
    item = get(client, "api/next?annotator=ann").json()["pair"]["item"]
    answer = judge(client, **{"item": item, "left_safe": True, "right_safe": True} | body)
    assert answer.status_code == 422 and answer.json()["error"].startswith(message)
    assert store.progress().kept == 0


def test_a_pair_that_others_filled_meanwhile_is_told_apart(store: Store, client: TestClient) -> None:
    store.add_batch("v1", pairs(1))
    item = get(client, "api/next?annotator=ann").json()["pair"]["item"]
    store.keep("v1", Judgement("p0", "bob", "a"))
    assert judge(client, item).status_code == 409 and store.progress().kept == 1


def test_so_is_a_pair_that_the_annotator_judged_otherwise_in_another_window(store: Store, client: TestClient) -> None:
    store.add_batch("v1", pairs(2))
    item = get(client, "api/next?annotator=ann").json()["pair"]["item"]
    assert judge(client, item).status_code == 200
    assert judge(client, item, strength="negligibly").status_code == 409 and store.progress().kept == 1


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (f"/{TOKEN}/", {}, 200),
        (f"/{TOKEN}/", {"host": "localhost:8642", "origin": "http://localhost:8642"}, 200),
        (f"/{TOKEN}/", {"host": "evil.example"}, 403),
        (f"/{TOKEN}/", {"host": "127.0.0.1.evil.example:8642"}, 403),
        (f"/{TOKEN}/", {"origin": "http://evil.example"}, 403),
        (f"/{TOKEN}/", {"origin": "http://127.0.0.1:9999"}, 403),
        (f"/{TOKEN}/", {"origin": "null"}, 403),
        (f"/{TOKEN}/", {"sec-fetch-site": "cross-site"}, 403),
        (f"/{TOKEN}/", {"sec-fetch-site": "same-site"}, 403),
        ("/wrong-token/", {}, 403),
        (f"/{TOKEN}", {}, 403),
        (f"/{TOKEN}x/", {}, 403),
        ("/", {}, 403),
        (f"/{TOKEN}/file/annotate.js", {}, 200),
        (f"/{TOKEN}/file/app.py", {}, 404),
        (f"/{TOKEN}/file/%2e%2e/app.py", {}, 400),
        (f"/{TOKEN}/file/..%2fapp.py", {}, 400),
        (f"/{TOKEN}/file/..\\app.py", {}, 400),
        (f"/{TOKEN}/docs", {}, 404),
        (f"/{TOKEN}/openapi.json", {}, 404),
    ],
)
def test_only_the_page_itself_is_answered(client: TestClient, path: str, headers: dict[str, str], status: int) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == status
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer" and "access-control-allow-origin" not in answer.headers


def test_paths_with_dots_are_refused_as_they_come_over_the_wire(store: Store) -> None:
    """Clients tidy such paths up before they send them; what is refused here is what a server would get."""
    import asyncio

    app = make_app(store, TOKEN, "")
    for path in (f"/{TOKEN}/file/../app.py", f"/{TOKEN}/../{TOKEN}/", f"/{TOKEN}/./", f"/{TOKEN}/file/.hidden"):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
        asyncio.run(app({**scope, "headers": [(b"host", b"127.0.0.1:1")]}, receive, send))
        assert sent[0]["status"] == 400, path


def test_who_opens_the_address_before_the_server_answers_waits() -> None:
    """The address is printed then: on a busy machine a browser came too early, and was refused."""
    listener = listen(0)
    port = listener.getsockname()[1]
    with listener, socket.create_connection(("127.0.0.1", port), timeout=5.0), pytest.raises(InputError) as taken:
        listen(port)
    assert f"port: {port} cannot be had" in str(taken.value)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=b", 415),
        ({"content-type": "application/json"}, b"x" * 70_000, 413),
        ({"content-type": "application/json"}, b"no json", 422),
        ({"content-type": "application/json"}, b"[]", 422),
        ({"content-type": "application/json", "origin": "http://evil.example"}, b"{}", 403),
        ({"content-type": "application/json", "sec-fetch-site": "cross-site"}, b"{}", 403),
    ],
)
def test_a_form_of_another_site_cannot_judge(
    store: Store, client: TestClient, headers: dict[str, str], body: bytes, status: int
) -> None:
    store.add_batch("v1", pairs(1))
    assert client.post(f"/{TOKEN}/api/judge", headers=headers, content=body).status_code == status
    assert store.progress().kept == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_what_models_wrote_does_nothing(text: str) -> None:
    import re

    html = render(text)
    tags = re.findall(r"<[^>]*>", html)
    allowed = (
        r'</?(p|pre|code|em|strong|ul|ol|li|h[1-6]|blockquote|table|thead|tbody|tr|th|td|hr|br)( tabindex="0")?\s*/?>'
    )
    assert all(re.fullmatch(allowed, tag) for tag in tags), tags


def test_markdown_and_code_are_shown(client: TestClient) -> None:
    html = render("# Head\n\n- *one*\n\n```python\nif a < b:\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    assert "<h1>Head</h1>" in html and "<li><em>one</em></li>" in html and "<td>1</td>" in html
    assert '<pre tabindex="0"><code>if a &lt; b:\n</code></pre>' in html
    page = get(client, "").text
    assert "<h1>Mine</h1>" in page and "<em>fair</em>" in page


def test_links_and_images_stay_as_they_were_written() -> None:
    assert render("![x](http://e.example/p.png) and [y](http://e.example)") == (
        "<p>![x](http://e.example/p.png) and [y](http://e.example)</p>\n"
    )


def test_a_long_text_is_shown_whole_and_plain() -> None:
    for text in ("[" * 50_000, "*a " * 17_000, "> " * 25_000, "<b>" * 17_000):
        html = render(text)
        assert len(text) > LONGEST_MARKDOWN and html.startswith("<p class='plain'>") and "<b>" not in html
        assert html.count("&lt;b&gt;") == text.count("<b>")


def test_characters_that_turn_the_direction_of_text_are_named() -> None:
    assert render("safe \u202eefas\u202c \x00") == "<p>safe ⟦U+202E⟧efas⟦U+202C⟧ ⟦U+0000⟧</p>\n"
    assert render("שלום\tworld\n") == "<p>שלום\tworld</p>\n", "letters that go right to left are left alone"


def test_the_guidelines_speak_of_every_choice() -> None:
    text = default_guidelines(PREFERENCE)
    for word in ("Significantly", "Better", "Slightly", "Negligibly", "Helpfulness", "Safety", "unsafe", "Skip"):
        assert word in text
