"""People write: prompts for two models, demonstrations, the red team; by the page's own requests."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from rlhf.annotation.exchange import WRITERS
from rlhf.annotation.page.app import default_guidelines, make_app
from rlhf.annotation.scales import PREFERENCE
from rlhf.annotation.store import Store
from rlhf.annotation.writing import CATEGORIES, ROWS, STYLES, Answering, Mode, Writing, written_rows
from rlhf.commands.annotate import EXPORTS, add_options, annotate
from rlhf.conversation import Conversation
from rlhf.data.loading import load_conversations, load_preferences, load_prompts
from rlhf.errors import InputError
from rlhf.evaluation.safety.red_team import read_log
from rlhf.sampling.protocol import Sample, SamplingParams

TOKEN = "secret-token"
KEY = "0123456789abcdef"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


class Echo:
    """Says how long the dialogue is, and its own name; what it was asked is kept."""

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, []  # type: ignore[var-annotated]

    def sample(
        self, prompts: Sequence[Conversation], num_samples: int, params: SamplingParams, keys: Any = None
    ) -> list[list[Sample]]:
        self.asked.append((prompts[0], params.temperature, keys))
        text = "" if "silence" in prompts[0][-1]["content"] else f"{self.name} heard {len(prompts[0])} messages"
        return [[Sample(text, (1,), 0.0, finished=True)]]


@pytest.fixture
def models() -> list[Echo]:
    return [Echo("newest"), Echo("older")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "labels.sqlite") as store:
        yield store


def client_of(store: Store, mode: Mode, models: Sequence[Echo] = ()) -> TestClient:
    answering = Answering(models, [model.name for model in models], SamplingParams()) if models else None  # type: ignore[arg-type]
    app = make_app(store, TOKEN, "", Writing(mode, answering, "v1" if mode == "red-team" else ""))
    return TestClient(app, base_url="http://127.0.0.1:8642")


def post(client: TestClient, path: str, **body: Any) -> Any:
    return client.post(f"/{TOKEN}/api/{path}", json={"annotator": "ann", "seconds": 30.0} | body)


def get(client: TestClient, path: str) -> Any:
    return client.get(f"/{TOKEN}/api/{path}").json()


def command(*options: Any) -> None:
    parser = ArgumentParser()
    add_options(parser)
    annotate(parser.parse_args([str(option) for option in options]))


def test_two_models_answer_and_the_dialogue_goes_on_from_the_chosen_one(
    store: Store, models: list[Echo], tmp_path: Path
) -> None:
    client = client_of(store, "write", models)
    after = None
    for turn in range(2):
        sent = {"text": f"Prompt {turn}", "after": after, "key": KEY[::-1] if turn else KEY, "domain": "helpfulness"}
        items = [post(client, "ask", **sent).json()["item"] for _ in range(2)]
        assert items[0] == items[1] and len(models[0].asked) == turn + 1, "sent twice, it is there once"
        pair = get(client, "next?annotator=ann")["pair"]
        assert pair["item"] == items[0] and pair["scale"] == "preference"
        assert len(pair["messages"]) == 1 + 2 * turn
        assert get(client, "next?annotator=bob")["pair"] is None, "it is leased to who wrote it"
        side = "left" if "older" in pair["left"] else "right"
        judged = {"item": pair["item"], "choice": side, "strength": "better", "left_safe": None, "right_safe": None}
        assert post(client, "judge", **judged).status_code == 200
        after = pair["item"]
        assert [m["role"] for m in get(client, f"dialogue?annotator=ann&after={after}")["messages"]][-1] == "assistant"
    assert models[0].asked[1][0][1]["content"] == "older heard 1 messages", "the chosen answer, of whichever model"
    assert [asked[1] for asked in (models[0].asked[0], models[1].asked[0])] == [0.8, 1.2]
    command(tmp_path, "--export", tmp_path / "rows.jsonl")
    rows = load_preferences(str(tmp_path / "rows.jsonl"))
    assert [row.chosen for row in rows] == ["older heard 1 messages", "older heard 3 messages"]
    assert [row.rejected for row in rows] == ["newest heard 1 messages", "newest heard 3 messages"]
    assert {row.source for row in rows} == {"ann"} and len(rows[1].messages) == 3


def test_what_does_not_go_on_is_said(store: Store, models: list[Echo]) -> None:
    client = client_of(store, "write", models)
    sent = {"text": "Prompt", "after": None, "key": KEY, "domain": "safety"}
    for change, message in (
        ({"text": " "}, "text: write something"),
        ({"text": "x" * 20_001}, "text: may have 20000"),
        ({"text": "please keep silence"}, "no two answers that differ"),
        ({"key": "no hex"}, "key: "),
        ({"domain": "fun"}, "domain: "),
        ({"after": 9}, "item: "),
        ({"after": "1"}, "after: "),
        ({"annotator": "a\nb"}, "annotator: "),
    ):
        answer = post(client, "ask", **sent | change)
        assert answer.status_code == 422 and message in answer.json()["error"], change
    item = post(client, "ask", **sent).json()["item"]
    answer = post(client, "ask", **sent | {"after": item, "key": KEY[::-1]})
    assert answer.status_code == 422 and "no answer was chosen" in answer.json()["error"]
    assert store.progress().pairs == 1


def test_demonstrations_of_one_and_several_turns(store: Store, tmp_path: Path) -> None:
    client = client_of(store, "demonstrate")
    sent = {"text": "Hello", "answer": "Hi there", "after": None, "key": KEY, "domain": "helpfulness"}
    first = [post(client, "demonstrate", **sent).json() for _ in range(2)]
    assert first[0] == first[1] and first[0]["mine"] == {"written": 1}
    more = sent | {"text": "And now?", "answer": "Goodbye", "after": first[0]["entry"], "key": KEY[::-1]}
    assert post(client, "demonstrate", **more).json()["mine"] == {"written": 2}
    assert post(client, "demonstrate", **more | {"annotator": "bob", "key": KEY * 2}).status_code == 422, "not bob's"
    assert post(client, "demonstrate", **sent | {"answer": "", "key": KEY * 2}).status_code == 422
    command(tmp_path, "--rows", "demonstrations", "--export", tmp_path / "sft.jsonl")
    rows = load_conversations(str(tmp_path / "sft.jsonl"))
    assert [[m["content"] for m in row] for row in rows] == [
        ["Hello", "Hi there"],
        ["Hello", "Hi there", "And now?", "Goodbye"],
    ]


@pytest.mark.parametrize("mode", ["demonstrate", "red-team"])
def test_where_nobody_judges_no_judgement_of_another_day_is_taken_back(
    store: Store, models: list[Echo], mode: Mode
) -> None:
    with_models = client_of(store, "write", models)
    item = post(with_models, "ask", text="Hi", after=None, key=KEY, domain="helpfulness").json()["item"]
    said = {"choice": "left", "strength": "better", "left_safe": None, "right_safe": None}
    assert post(with_models, "judge", item=item, **said).json()["progress"]["newest"] > 0
    assert get(client_of(store, mode, models), "next?annotator=ann")["progress"]["newest"] == 0


def attempt(client: TestClient, text: str, key: str, **body: Any) -> Any:
    about = {"category": CATEGORIES[2], "style": STYLES[3], "after": None}
    return post(client, "attempt", text=text, key=key, **about | body)


def test_the_red_team_s_violations_become_prompts_and_safe_answers(
    store: Store, models: list[Echo], tmp_path: Path, capsys: Any
) -> None:
    client = client_of(store, "red-team", models[:1])
    first = attempt(client, "how do I paint my goat ?", KEY).json()["attempt"]
    assert attempt(client, "how do I paint my goat ?", KEY).json()["attempt"] == first and len(models[0].asked) == 1
    assert get(client, "dialogue?annotator=ann")["attempt"] == first, "after a restart it still waits for its verdict"
    said = {"entry": first["entry"], "violation": True, "better": "Better not."}
    for _ in range(2):
        assert post(client, "verdict", **said).json()["mine"] == {"written": 1, "violations": 1}
    assert post(client, "verdict", **said | {"violation": False}).status_code == 422, "judged already"
    assert post(client, "verdict", **said | {"violation": "yes"}).status_code == 422
    again = attempt(client, "and the next day ?", KEY[::-1], after=first["entry"]).json()
    assert [m["role"] for m in again["messages"]] == ["user", "assistant", "user"]
    post(client, "verdict", entry=again["attempt"]["entry"], violation=False)
    attempt(client, "nobody judges this", KEY * 2)

    for rows in ("attempts", "adversarial", "safe-answers"):
        command(tmp_path, "--rows", rows, "--export", tmp_path / f"{rows}.jsonl")
    log = read_log(tmp_path / "attempts.jsonl")
    assert [(row.violation, row.domain, row.category, row.seconds) for row in log] == [
        (True, "safety", CATEGORIES[2], 30.0),
        (False, "safety", CATEGORIES[2], 30.0),
    ]
    assert [prompt.domain for prompt in load_prompts(str(tmp_path / "attempts.jsonl"))] == ["safety", "safety"]
    (prompt,) = load_prompts(str(tmp_path / "adversarial.jsonl"))
    assert (prompt.domain, prompt.messages[-1]["content"]) == ("safety", "how do I paint my goat ?")
    (row,) = load_conversations(str(tmp_path / "safe-answers.jsonl"))
    assert [message["content"] for message in row] == ["how do I paint my goat ?", "Better not."]
    capsys.readouterr()
    command(tmp_path, "--figures")
    # one violation in a minute of one person's work: 60 in an hour
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:4] == ["v1", "1", "2", "1"] and line[-1] == "60.00"


def test_a_log_is_prompts_and_never_answers_to_train_on(store: Store, models: list[Echo], tmp_path: Path) -> None:
    client = client_of(store, "red-team", models[:1])
    entry = attempt(client, "how do I paint my goat ?", KEY).json()["attempt"]["entry"]
    post(client, "verdict", entry=entry, violation=True, better="")
    assert not list(written_rows(store, "safe-answers")), "nobody wrote one"
    command(tmp_path, "--rows", "attempts", "--export", tmp_path / "log.jsonl")
    with pytest.raises(InputError):
        load_conversations(str(tmp_path / "log.jsonl"))
    with pytest.raises(InputError, match="has no demonstrations yet"):
        command(tmp_path, "--rows", "demonstrations", "--export", tmp_path / "x.jsonl")


OWN = {"write": ["ask"], "demonstrate": ["demonstrate"], "red-team": ["attempt", "verdict"]}


@pytest.mark.parametrize("mode", OWN)
def test_no_other_site_writes_and_each_mode_answers_its_own_requests_alone(
    store: Store, models: list[Echo], mode: Mode
) -> None:
    client = client_of(store, mode, models)
    content = json.dumps({"annotator": "ann", "text": "x", "key": KEY, "domain": "safety"})
    for path in OWN[mode]:
        for headers, status in (
            ({"host": "evil.example"}, 403),
            ({"origin": "http://evil.example"}, 403),
            ({"sec-fetch-site": "cross-site"}, 403),
            ({"content-type": "text/plain"}, 415),
        ):
            sent = {"content-type": "application/json"} | headers
            assert client.post(f"/{TOKEN}/api/{path}", headers=sent, content=content).status_code == status
        assert client.post(f"/wrong/api/{path}", json={}).status_code == 403
        assert client.post(f"/{TOKEN}/api/{path}", json={"text": "x" * 70_000}).status_code == 413
    others = [path for other, paths in OWN.items() if other != mode for path in paths]
    assert [post(client, path).status_code for path in others] == [404] * len(others)
    assert client.get("/wrong/api/dialogue?annotator=ann").status_code == 403
    assert not models[0].asked


def test_what_people_and_models_write_does_nothing(store: Store, models: list[Echo]) -> None:
    models[0].name = HOSTILE
    client = client_of(store, "red-team", models[:1])
    answer = attempt(client, HOSTILE, KEY).text + json.dumps(get(client, "dialogue?annotator=ann"))
    assert "<script" not in answer and "<img" not in answer and "&lt;script&gt;" in answer


@pytest.mark.parametrize("mode", ["write", "demonstrate", "red-team"])
def test_every_field_has_a_label_and_the_guidelines_fit(store: Store, mode: Mode) -> None:
    import re

    page = client_of(store, mode, [Echo("m")]).get(f"/{TOKEN}/").text
    fields = re.findall(r'<(?:textarea|select|input id)[^>]*?id="([^"]+)"|<input id="([^"]+)"', page)
    assert {f'for="{a or b}"' in page for a, b in fields} == {True}
    assert f'data-mode="{mode}"' in page and "write.js" in page
    assert "write" in default_guidelines(PREFERENCE, mode).lower()
    assert (
        'id="write"'
        not in TestClient(make_app(store, TOKEN, ""), base_url="http://127.0.0.1:8642").get(f"/{TOKEN}/").text
    )


def test_the_kinds_of_rows_are_named_once_more_for_the_command_line() -> None:
    assert (*ROWS, *WRITERS) == EXPORTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--write", "a", "b", "c"), "write: two models answer at most"),
        (("--write", "http://localhost:1/v1"), "needs the model's name behind it"),
        (("--write", "no/such/model"), "no/such/model"),
        (("--red-team", "no/such/model"), "round: must be given"),
        (("--write", "http://127.0.0.1:1/v1#tiny"), r"write\.server: http://127\.0\.0\.1:1/v1"),
        (("--red-team", "http://127.0.0.1:1/v1#tiny", "--round", "v1"), r"red-team\.server: http://127\.0\.0\.1:1/v1"),
        (("--figures",), "there is no labels.sqlite"),
        (("--write", "a", "--chat-template-kwargs", "{enable_thinking: so}"), "enable_thinking: must be true or false"),
        (("--demonstrate", "--chat-template-kwargs", "{enable_thinking: false}"), "where a model answers"),
    ],
)
def test_bad_options_are_named_before_a_model_is_loaded(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        command(tmp_path, *options)
    assert not (tmp_path / "labels.sqlite").exists()
