"""A real chat model behind a real server as a judge, end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served

from rlhf.annotation.labelling import batch_figures, label_batch, require_complete
from rlhf.annotation.protocol import Pair
from rlhf.annotation.registry import make_annotator
from rlhf.annotation.store import Store
from rlhf.rewards.pair_judge import judge_counts

pytestmark = pytest.mark.real_model
ASKED = {
    "What is the capital of France?": ("The capital of France is Paris.", "I like trains."),
    "How many legs does a spider have?": ("A spider has eight legs.", "Three, I think, or so."),
    "Name a fruit that is yellow.": ("A banana.", "The sky."),
    "What do bees make?": ("Bees make honey.", "Bees bees bees bees."),
    "Translate 'good morning' into Spanish.": ("Buenos días.", "No."),
    "What is 7 times 6?": ("42", "7 times 6 is 12."),
    "Who wrote Hamlet?": ("William Shakespeare wrote Hamlet.", "Hamlet is a village."),
    "What colour is fresh snow?": ("White.", "It depends on the dog."),
    "What is frozen water called?": ("Ice.", "Hot."),
    "Which planet do we live on?": ("We live on Earth.", "We live on a Tuesday."),
}


@pytest.fixture
def judge(real_model: Path, tmp_path: Path) -> Iterator[Served]:
    server = Served(real_model, tmp_path)
    server.start()
    yield server
    server.close()


def test_a_real_model_judges_ten_pairs_in_both_orders(judge: Served, tmp_path: Path) -> None:
    """Every pair has its verdict or the reason why there is none; a judge that says little is told."""
    pairs = [Pair([{"role": "user", "content": ask}], *both) for ask, both in ASKED.items()]
    options = {"judges": [{"url": judge.url, "model": judge.model, "concurrency": 2}], "max_new_tokens": 24}
    annotator = make_annotator("judge", options)
    with Store(tmp_path / "labels.sqlite") as store:
        store.add_batch("v1", pairs)
        label_batch(store, "v1", annotator)
        require_complete(store, "v1")
        figures = batch_figures(store, "v1")
    counts = judge_counts(annotator.opinions[0])
    print(counts, figures["skipped"])
    assert counts["pairs"] == 10 == sum(counts.values()) - counts["pairs"]
    assert figures["judgements"] == counts["decided"]
    assert figures["skipped"].get("the choice hangs on the order", 0) == counts["order_decides"]
    assert figures["skipped"].get("the judgement cannot be read", 0) == counts["unreadable"]
    assert bool(annotator.suspicious) == (counts["unreadable"] > 1 or counts["order_decides"] > 5)
    assert judge.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200') >= 20
