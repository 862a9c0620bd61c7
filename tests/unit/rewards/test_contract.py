"""The contract of reward functions: who keeps it, what breaks it; the examples; a served reward model."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.cli import main
from rlhf.conversation import Conversation, Renderer
from rlhf.errors import InputError
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.contract import EXAMPLES, check_reward_function
from rlhf.rewards.examples import Brevity, Matches, Served
from rlhf.rewards.loading import load_reward
from rlhf.rewards.scoring import RewardModelFunction

CHECKS = ("scores", "repeat", "batch", "order", "input")
WHOLE = json.dumps(EXAMPLES)


def length(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])


def drifts() -> Callable[[Sequence[Conversation]], torch.Tensor]:
    calls = iter(range(100))
    return lambda conversations: length(conversations) + next(calls)


def centred(conversations: Sequence[Conversation]) -> torch.Tensor:
    return length(conversations) - length(conversations).mean()


def by_place(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.arange(len(conversations)).float() if len(conversations) > 1 else torch.zeros(1)


def strips(conversations: Sequence[Conversation]) -> torch.Tensor:
    scores = length(conversations)
    for conversation in conversations:
        conversation.pop()
    return scores


def sorts(conversations: Any) -> torch.Tensor:
    conversations.sort(key=len)
    return length(conversations)


def raises_alone(conversations: Sequence[Conversation]) -> torch.Tensor:
    if len(conversations) == 1:
        raise ZeroDivisionError("no spread")
    return length(conversations)


@pytest.mark.parametrize(
    ("reward", "check", "says"),
    [
        (lambda c: length(c)[:, None], "scores", r"\(5,\), got \(5, 1\)"),
        (lambda c: length(c).tolist(), "scores", "returns a tensor"),
        (lambda c: length(c) * float("inf"), "scores", "not finite"),
        (lambda c: length(c).double() * 1e300, "scores", "not finite"),
        (lambda c: 1 / 0, "scores", "raised ZeroDivisionError on 5 conversations"),
        (drifts(), "repeat", "when asked again"),
        (centred, "batch", "conversation 0 scores .* when asked alone"),
        (by_place, "order", "when the order is reversed"),
        (strips, "input", "changes the conversations"),
        (sorts, "input", "changes the conversations"),
        (raises_alone, "batch", "raised ZeroDivisionError on 1 conversations"),
    ],
)
def test_what_breaks_the_contract_is_told(reward: Any, check: str, says: str) -> None:
    problem = check_reward_function(reward)[check]
    assert problem is not None
    assert re.search(says, problem), problem
    assert json.dumps(EXAMPLES) == WHOLE


@pytest.mark.parametrize("reward", [length, Brevity(), Matches("green"), lambda c: length(c).long()])
def test_what_keeps_the_contract(reward: Any) -> None:
    assert check_reward_function(reward) == dict.fromkeys(CHECKS)


def test_a_reward_model_keeps_the_contract(tiny_policy_path: Path) -> None:
    model = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0)
    reward = RewardModelFunction(model, Renderer(load_tokenizer(tiny_policy_path)))
    assert not any(check_reward_function(reward).values())


def test_example_rewards_by_hand() -> None:
    def says(text: str) -> Conversation:
        return [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": text}]

    assert Brevity()([says("one two"), says("word " * 15)]).tolist() == [0.0, -0.5]
    ends = load_reward("rlhf.rewards.examples:ends_a_sentence")
    assert ends([says("Yes. "), says("Yes. And"), says("no")]).tolist() == [1.0, 0.0, 0.0]


class _Server(BaseHTTPRequestHandler):
    """Scores by length at /, and breaks in a way of its own at other places; notes the requests' sizes."""

    sizes: list[int]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [len(c[-1]["content"]) for c in body["conversations"]]
        self.sizes.append(len(scores))
        answer = {"/short": {"scores": scores[1:]}, "/words": {"scores": ["high"]}, "/other": {"rewards": scores}}
        answer |= {"/nan": {"scores": [math.nan] * len(scores)}, "/list": scores}
        answer |= {"/flags": {"scores": [True] * len(scores)}}
        text = "{" if self.path == "/cut" else json.dumps(answer.get(self.path, {"scores": scores}))
        self.send_response(500 if self.path == "/error" else 200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("rlhf.http_client.FIRST_WAIT", 0.0)
    _Server.sizes = []
    served = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()
    thread.join()


def test_a_served_reward_model(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Served(server, rows=2)
    assert reward(EXAMPLES).tolist() == length(EXAMPLES).tolist() and _Server.sizes == [2, 2, 1]
    monkeypatch.setenv("REWARD_URL", server)
    assert not any(check_reward_function(load_reward("rlhf.rewards.examples:Served")).values())


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/short", r"does not answer \{\"scores\": \[…\]\}, a finite number for each of 5 conversations, 3 times"),
        ("/words", "a finite number for each"),
        ("/nan", "a finite number for each"),
        ("/flags", "a finite number for each"),
        ("/other", "a finite number for each"),
        ("/list", "a finite number for each"),
        ("/cut", "gives an answer that is not JSON"),
        ("/error", r"answers 500 \(.*\), 4 times in a row"),
    ],
)
def test_a_server_that_answers_badly_is_named(server: str, path: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Served(server + path)(EXAMPLES)
    assert str(error.value).startswith(f"reward server: {server}{path} ") and "\n" not in str(error.value)


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.http_client.FIRST_WAIT", 0.0)
    with HTTPServer(("127.0.0.1", 0), _Server) as closed:
        url = f"http://127.0.0.1:{closed.server_port}"
    with pytest.raises(InputError, match=rf"reward server: {url} cannot be reached \(Connection refused\), 4 times"):
        Served(url)(EXAMPLES)
    monkeypatch.delenv("REWARD_URL", raising=False)
    with pytest.raises(InputError, match=r"^REWARD_URL: must begin with http"):
        load_reward("rlhf.rewards.examples:Served")


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(spec: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["verify-reward", spec])
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    code, out, _ = verify("rlhf.rewards.examples:Brevity")
    assert code == 0 and out.splitlines() == [f"{name:<8} ok" for name in CHECKS]
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    code, out, _ = verify("test_contract:centred")
    assert code == 1 and "batch    BROKEN: conversation 0 scores" in out
    code, _, err = verify("nowhere:Reward")
    assert code == 2 and err.startswith("error: reward: nowhere:Reward cannot be imported") and err.count("\n") == 1


def test_a_module_that_is_not_the_one_that_was_meant_or_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, neither the file that was found in its place was said, nor the line that failed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text("def score(talks): ...\n")  # so is one of Python's own called
    with pytest.raises(InputError, match=r"module 'code' has no attribute 'score' in /.*/code.py\); name it package"):
        load_reward("code:score")
    (tmp_path / "my_broken_reward.py").write_text("import torch\n\nlimit = 1 / 0\n")
    with pytest.raises(InputError, match=r"\(ZeroDivisionError: division by zero, .*my_broken_reward.py:3\)$"):
        load_reward("my_broken_reward:score")
