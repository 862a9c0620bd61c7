"""Judgements as JSONL, and with their pairs in the formats of Argilla and Label Studio: out, and back again.

JSONL has a row a judgement, `rlhf.annotation.protocol.Judgement` with its `batch` (written by `written_rows`).

Both tools show a pair as two answers, first and second, in an order that is drawn, and ask the same questions: `choice`
(one of `labels_of` the batch's scale), `first_safe` and `second_safe`. docs/annotation.md has the settings of both.

    Argilla:      [{"id", "fields": {"messages", "first", "second"}, "metadata": {"pair", "batch", "domain"},
                    "responses": {"choice": [{"value", "user_id"}], ...}}]                 (records.to_json, 2.x)
    Label Studio: [{"data": {"pair", "batch", "domain", "messages", "dialogue", "first", "second"},
                    "annotations": [{"result": [...], "completed_by", "lead_time", "was_cancelled"}]}]
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.annotation.protocol import Choice, Judgement, Pair
from rlhf.annotation.scales import Scale
from rlhf.annotation.store import FullError, Store, left_of
from rlhf.errors import InputError
from rlhf.jsonl import read_rows

NAME = "exchange"  # the order of first and second is drawn for it, as for an annotator
TIE = "about the same"
SAFE = {True: "safe", False: "unsafe"}
QUESTIONS = ("choice", "first_safe", "second_safe")
Said = dict[str, Any]  # an annotator's answers to QUESTIONS, and "skipped", "annotator", "seconds"


def labels_of(scale: Scale) -> list[str]:
    """The answers to `choice`, in their order: "first significantly" … "second significantly"."""
    sides = {"left": "first", "right": "second"}
    return [TIE if side == "tie" else f"{sides[side]} {strength}" for side, strength in scale.points]


def to_argilla(store: Store) -> list[dict[str, Any]]:
    """Records of all people's batches with the judgements there are; Argilla's users are named by a UUID."""
    found = []
    for batch, pair, first, second, said in _items(store):
        responses: dict[str, list[dict[str, Any]]] = {}
        for each in said:
            for name in QUESTIONS:
                if each.get(name) is not None:
                    answer = {"value": each[name], "user_id": user_id(each["annotator"])}
                    responses.setdefault(name, []).append(answer)
        found.append(
            {
                "id": f"{batch}/{pair.id}",
                "fields": {"messages": pair.messages, "first": first, "second": second},
                "metadata": {"pair": pair.id, "batch": batch, "domain": pair.domain},
                "suggestions": {},
                "responses": responses,
                "vectors": {},
            }
        )
    return found


def to_label_studio(store: Store) -> list[dict[str, Any]]:
    """Tasks of all people's batches with the judgements there are."""
    found = []
    for batch, pair, first, second, said in _items(store):
        data = {"pair": pair.id, "batch": batch, "domain": pair.domain, "messages": pair.messages}
        dialogue = "\n\n".join(f"{message['role']}: {message['content']}" for message in pair.messages)
        annotations = [
            {
                "result": [
                    {
                        "from_name": name,
                        "to_name": "second" if name == "second_safe" else "first",
                        "type": "choices",
                        "value": {"choices": [each[name]]},
                    }
                    for name in QUESTIONS
                    if each.get(name) is not None
                ],
                "completed_by": {"email": each["annotator"]},
                "lead_time": each["seconds"],
                "was_cancelled": bool(each["skipped"]),
            }
            for each in said
        ]
        found.append(
            {"data": data | {"dialogue": dialogue, "first": first, "second": second}, "annotations": annotations}
        )
    return found


WRITERS: dict[str, Callable[[Store], list[dict[str, Any]]]] = {
    "argilla": to_argilla,
    "label-studio": to_label_studio,
}


def user_id(annotator: str) -> str:
    """The UUID that stands for an annotator in Argilla's records."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"annotator:{annotator}"))


def bring_in(store: Store, file: Path) -> tuple[int, int]:
    """Keep the judgements of a file: JSONL of ours, or what Argilla or Label Studio wrote.

    Returns:
        How many are new, and how many came too late: their pair had all it wants.

    Raises:
        InputError: with file and position, where a record is none of these, names no pair of the store, or holds an
            answer that was not to choose from. What stands before it is kept.
    """
    names = {user_id(name): name for name in store.annotators()}
    new = late = 0
    for number, row in read_rows(file):
        try:
            batch, judgements = _own(store, row) if "annotator" in row else _of_tool(store, row, names)
            for judgement in judgements:
                try:
                    new += store.keep(batch, judgement)
                except FullError:
                    late += 1
        except InputError as error:
            raise InputError(f"{file}:{number}: {error}") from error
    return new, late


def _items(store: Store) -> Iterable[tuple[str, Pair, str, str, list[Said]]]:
    """(batch, pair, first answer, second answer, what was said of it) of people's batches."""
    for batch in store.batches(people=True):
        said: dict[str, list[Said]] = {}
        for *_, judgement in store.judged(batch):
            said.setdefault(judgement.pair, []).append(_said(judgement))
        for pair in store.pairs(batch):
            first, second = (pair.a, pair.b) if left_of(pair.id, NAME) == "a" else (pair.b, pair.a)
            yield batch, pair, first, second, said.get(pair.id, [])


def _said(judgement: Judgement) -> Said:
    common = {"annotator": judgement.annotator, "seconds": judgement.seconds, "skipped": judgement.skipped}
    if judgement.choice is None:
        return common
    if judgement.choice == "tie":
        return common | {"choice": TIE}
    side, other = ("first", "second") if judgement.choice == left_of(judgement.pair, NAME) else ("second", "first")
    labels = {f"{side}_safe": judgement.chosen_safe, f"{other}_safe": judgement.rejected_safe}
    words = {name: SAFE[label] for name, label in labels.items() if label is not None}
    return common | {"choice": f"{side} {judgement.strength or 'slightly'}"} | words


def _judgement(pair: Pair, scale: Scale, said: Said) -> Judgement:
    first = left_of(pair.id, NAME)
    common: dict[str, Any] = {"left": first, "seconds": said["seconds"]}
    choice = said.get("choice")
    if said["skipped"] or choice is None:
        return Judgement(pair.id, said["annotator"], None, skipped=said["skipped"] or "no choice", **common)
    if choice not in labels_of(scale):
        raise InputError(f"choice: must be one of {', '.join(labels_of(scale))}, got {choice!r}")
    if choice == TIE:
        return Judgement(pair.id, said["annotator"], "tie", **common)
    side, strength = choice.split()
    other = "second" if side == "first" else "first"
    second: Choice = "b" if first == "a" else "a"
    labels = [_safe(said.get(f"{place}_safe")) for place in (side, other)] if scale.safety else [None, None]
    return Judgement(pair.id, said["annotator"], first if side == "first" else second, strength, *labels, **common)


def _safe(word: Any) -> bool | None:
    known: dict[Any, bool | None] = {"safe": True, "unsafe": False, None: None}
    if word not in known:
        raise InputError(f"first_safe, second_safe: must be safe or unsafe, got {word!r}")
    return known[word]


def _own(store: Store, row: Mapping[str, Any]) -> tuple[str, list[Judgement]]:
    """A batch and the judgement that a row of JSONL holds; without `batch` it is that of the store's only one."""
    judgement = Judgement.from_dict({name: value for name, value in row.items() if name != "batch"})
    batches = store.batches(people=True)
    if "batch" not in row and len(batches) != 1:
        raise InputError(f"batch: is missing, and {store.path} has {len(batches)}: {', '.join(batches)}")
    batch = str(row.get("batch", batches[0] if batches else ""))
    _pair(store, batch, judgement.pair)
    return batch, [judgement]


def _of_tool(store: Store, row: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, list[Judgement]]:
    """The same of a record of Argilla's or Label Studio's; `names`: UUID -> the annotator that it stands for."""
    batch, pair, said = _read(store, row)
    for each in said:
        each["annotator"] = names.get(each["annotator"], each["annotator"])
    return batch, [_judgement(pair, store.scale(batch), each) for each in said]


def _pair(store: Store, batch: str, id: str) -> Pair:
    pair = store.pair_of_id(batch, id)
    if pair is None:
        raise InputError(
            f"pair: {store.path} has no pair {id!r} in a batch {batch!r}; import into the store it came of"
        )
    return pair


def _read(store: Store, row: Mapping[str, Any]) -> tuple[str, Pair, list[Said]]:
    if isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list):
        about, said = row["data"], [_of_label_studio(each) for each in row["annotations"]]
    elif isinstance(row.get("metadata"), Mapping) and isinstance(row.get("responses"), Mapping):
        about, said = row["metadata"], _of_argilla(row["responses"])
    else:
        raise InputError(
            "is no judgement (pair, annotator, choice), no record of Argilla's (fields, metadata, responses) and no "
            "task of Label Studio's"
        )
    batch = str(about.get("batch"))
    return batch, _pair(store, batch, str(about.get("pair"))), said


def _of_argilla(responses: Mapping[str, Any]) -> list[Said]:
    found: dict[str, Said] = {}
    for name in QUESTIONS:
        for answer in responses.get(name) or ():
            if not isinstance(answer, Mapping) or not str(answer.get("user_id") or ""):
                raise InputError(f"responses.{name}: must be a list of value and user_id, got {answer!r}")
            who = str(answer["user_id"])
            own = found.setdefault(who, {"annotator": who, "seconds": None, "skipped": ""})
            own[name] = answer.get("value")
    return list(found.values())


def _of_label_studio(annotation: Any) -> Said:
    try:
        who, result = annotation["completed_by"], annotation["result"]
        who = (who.get("email") or who.get("id")) if isinstance(who, Mapping) else who
        answers = {each["from_name"]: each["value"]["choices"][0] for each in result if each["from_name"] in QUESTIONS}
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"annotations: cannot be read ({type(error).__name__}: {error})") from error
    skipped = "skipped in Label Studio" if annotation.get("was_cancelled") else ""
    return {"annotator": str(who), "seconds": annotation.get("lead_time"), "skipped": skipped} | answers


def write_exchange(store: Store, name: str, output: Path) -> int:
    """Write a file that Argilla's `records.from_json` or Label Studio's import reads; return how many pairs."""
    rows: Sequence[dict[str, Any]] = WRITERS[name](store)
    output.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return len(rows)
