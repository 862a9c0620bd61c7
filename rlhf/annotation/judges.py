"""Judge models behind OpenAI-compatible servers as an annotator: one, or a panel whose majority chooses.

Every judge is asked about a pair in both orders (`rlhf.rewards.pair_judge`): only a verdict that stays when the
answers change places is one. Several requests are in flight at once, of all judges.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from typing import Any, get_args

from rlhf.annotation.protocol import Choice, Judgement, Pair
from rlhf.conversation import Conversation, decided
from rlhf.data.rows import Domain
from rlhf.data.suspicion import suspicious_judge
from rlhf.errors import InputError
from rlhf.http_client import RequestFailed, completed
from rlhf.rewards.pair_judge import Opinion, judge_agreements, judge_counts, judge_requests, opinion, panel_opinion
from rlhf.sampling.chat import Chat, ServerConfig, open_chat, require_panel
from rlhf.sampling.protocol import SamplingParams


class Judges:
    """One judge model, or several.

    A pair is skipped, with the reason, where there is nothing to compare, the judge's choice hangs on the order of the
    answers, it calls a tie, its judgement cannot be read, its server refuses the pair, the judges are divided, or the
    choice is an unsafe answer over a safe one. The strength is the weakest that was said for the choice; in the domain
    safety the judges label both answers, and a label counts where all that gave one agree.

    Args:
        judges: the server of each, a ServerConfig or its fields: at least url and model.
        max_new_tokens: longest judgement.
        ties: a tie, and a choice that hangs on the order, is a judgement and no skip, for a scale that has ties.
        name: of the annotator in its judgements.

    Attributes:
        opinions: of each judge, by its place in `judges`: what it said of the pairs of the last call.
    """

    def __init__(
        self,
        judges: Sequence[Mapping[str, Any] | ServerConfig],
        max_new_tokens: int = 1024,
        name: str = "judge",
        ties: bool = False,
    ) -> None:
        if not isinstance(judges, list | tuple) or not judges:
            example = '[{"url": "http://localhost:8000/v1", "model": "NAME"}]'
            raise InputError(f"annotator_options.judges: must list one server or more, as {example}")
        self.servers = [_server(number, given) for number, given in enumerate(judges)]
        require_panel("annotator_options.judges", self.servers)
        self.params = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
        self.name, self.ties = name, ties
        self.opinions: list[list[Opinion]] = [[] for _ in judges]

    @property
    def suspicious(self) -> list[str]:
        """What looks wrong about the opinions of the last `judge`, a sentence each."""
        judged = zip(self.servers, self.opinions, strict=True)
        return [line for server, own in judged for line in suspicious_judge(server.model, judge_counts(own))]

    @property
    def asked(self) -> str:
        """What decides the judgements: the models, the length and the task; not where the servers are."""
        prompt: Conversation = [{"role": "user", "content": "?"}]
        asked = [judge_requests(Pair(prompt, "a", "b", domain)) for domain in get_args(Domain)]
        task = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
        decides = {"annotator": "judge", "models": [server.model for server in self.servers], "task": task}
        return json.dumps(decides | {"max_new_tokens": self.params.max_new_tokens})

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        """A judgement of every pair, as they come; what each judge's opinions were is said on standard error.

        Raises:
            InputError: a server does not serve its model, or fails; what came until then has been given out.
        """
        self.opinions = [[] for _ in self.servers]
        heard: dict[int, dict[tuple[int, int], str | None]] = defaultdict(dict)
        wanted: list[Pair] = []
        for pair in pairs:
            if decided(pair.a, pair.b) is None:
                wanted.append(pair)
            else:
                yield Judgement(pair.id, self.name, None, skipped="nothing to compare")
        if not wanted:
            return
        with ExitStack() as stack:
            chats = [
                stack.enter_context(open_chat(server, 1, self.params, f"judge {server.model}"))
                for server in self.servers
            ]
            jobs = {
                chat.client.start(partial(_ask, chat, request, place)): (place, judge, order)
                for place, pair in enumerate(wanted)
                for order, request in enumerate(judge_requests(pair))
                for judge, chat in enumerate(chats)
            }
            for (place, judge, order), text in completed(jobs, *(chat.client for chat in chats)):
                heard[place][judge, order] = text
                if len(heard[place]) == 2 * len(chats):
                    yield self._judgement(wanted[place], heard.pop(place))
        self._report()

    def _judgement(self, pair: Pair, texts: Mapping[tuple[int, int], str | None]) -> Judgement:
        refused = any(text is None for text in texts.values())
        said = [opinion(texts[j, 0] or "", texts[j, 1] or "") for j in range(len(self.servers))]
        for own, each in zip(self.opinions, said, strict=True):
            own.append(each)
        panel = panel_opinion(said)
        if panel.outcome == 0.5 and self.ties:
            return Judgement(pair.id, self.name, "tie")
        if panel.outcome in (None, 0.5):
            reason = "the judges are divided"
            if panel.outcome is None:
                reason = "the judge's server refuses the pair" if refused else "the judgement cannot be read"
            elif len(said) == 1:
                reason = "the choice hangs on the order" if panel.order_decides else "a tie"
            return Judgement(pair.id, self.name, None, skipped=reason)
        choice: Choice = "a" if panel.outcome == 1.0 else "b"
        safe = {"a": panel.a_safe, "b": panel.b_safe}
        rejected = "b" if choice == "a" else "a"
        if safe[choice] is False and safe[rejected] is True:
            return Judgement(pair.id, self.name, None, skipped="an unsafe answer preferred to a safe one")
        return Judgement(pair.id, self.name, choice, panel.strength, safe[choice], safe[rejected])

    def _report(self) -> None:
        for server, own in zip(self.servers, self.opinions, strict=True):
            c = judge_counts(own)
            print(
                f"judge {server.model}: of {c['pairs']} pairs {c['decided']} decided, {c['ties']} ties, "
                f"{c['order_decides']} left to the order, {c['unreadable']} unreadable",
                file=sys.stderr,
            )
        outcomes = {
            server.model: [o.outcome for o in own] for server, own in zip(self.servers, self.opinions, strict=True)
        }
        for found in judge_agreements(outcomes):
            names = " and ".join(found["judges"])
            print(
                f"judges {names}: agree on {found['same']} of {found['pairs']} pairs that both decided", file=sys.stderr
            )


async def _ask(chat: Chat, request: Conversation, key: int) -> str | None:
    """The judgement; None where the server refuses the request."""
    answers = await chat.answers_unless_refused(request, key)
    return None if isinstance(answers, RequestFailed) else answers[0][0] or ""


def _server(number: int, given: Any) -> ServerConfig:
    if isinstance(given, ServerConfig):
        return given
    field = f"annotator_options.judges[{number}]"
    known = [each.name for each in fields(ServerConfig)]
    if not isinstance(given, Mapping) or not {"url", "model"} <= given.keys() <= set(known):
        found = ", ".join(map(str, given)) if isinstance(given, Mapping) else "no fields"
        raise InputError(f"{field}: needs url and model, and may have {', '.join(known[2:])}; it has {found}")
    try:
        return ServerConfig(**given)
    except InputError as error:
        raise InputError(f"{field}.{error}") from None
    except (TypeError, AttributeError):
        raise InputError(f"{field}: a value is of another kind than its field") from None
