"""The row types at the door."""

from __future__ import annotations

import pytest

from rlhf.data.rows import Preference, Prompt
from rlhf.errors import InputError

ASK = [{"role": "user", "content": "a ?"}]
ROW = {"id": "1", "messages": ASK, "chosen": "hi", "rejected": "no"}


def test_rows_come_back_from_their_dicts():
    preference = Preference.from_dict({**ROW, "strength": "better", "chosen_safe": True, "domain": "safety"})
    assert Preference.from_dict(preference.to_dict()) == preference
    assert preference.conversation("rejected") == [*ASK, {"role": "assistant", "content": "no"}]
    prompt = Prompt.from_dict({"id": "1", "messages": ASK, "more": 1})
    assert Prompt.from_dict(prompt.to_dict()) == prompt


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": ""}, "id: must be a non-empty text"),
        ({"rejected": " hi "}, "the two answers are identical"),
        ({"chosen_safe": 0, "rejected_safe": True}, "chosen_safe: must be true, false or null, got 0"),
        ({"domain": None}, "domain: must be one of helpfulness, safety, got None"),
    ],
)
def test_what_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        Preference.from_dict({**ROW, **change})
