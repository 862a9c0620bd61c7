"""The command line with junk for words: an exit code of ours and a sentence, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st
from junk import HOW_MANY, fuzz, values

from rlhf.cli import main

CALLS = {
    "report": ["report", "{}"],
    "report of stages": ["report", "run", "{}", "--panel", "{}"],
    "verify": ["verify", "{}"],
    "compare": ["compare", "run", "{}"],
    "look": ["look", "{}", "--tokenizer", "{}"],
    "look at rows": ["look", "{}", "--as", "prompts"],
    "quality-gate": ["quality-gate", "{}", "--near", "{}"],
    "statistics": ["statistics", "{}", "--tokenizer", "{}"],
    "verify-reward": ["verify-reward", "{}"],
    "average": ["average", "scores", "{}", "--output", "average", "--weights", "{}", "1"],
    "plan": ["plan", "{}", "--seed", "{}"],
    "plan by its file": ["plan", "--config", "{}"],
    "run": ["run", "{}"],
    "new": ["new", "made", "--chat", "{}", "--preferences", "{}"],
    "new with a reward": ["new", "made", "--chat", "good", "--reward", "{}", "--versions", "{}"],
    "recipe path": ["recipe", "path", "{}"],
    "recipe copy": ["recipe", "copy", "{}", "copied.yaml"],
    "chat": ["chat", "{}"],
    "annotate": ["annotate", "{}", "--labels", "{}"],
    "no such": ["{}", "{}"],
}


@pytest.mark.parametrize("examples", HOW_MANY)
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_word_is_a_sentence(name: str, examples: int, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def check(given: tuple[str, str]) -> None:
        words = list(given)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([words.pop(0) if word == "{}" else word for word in CALLS[name]])
            raise SystemExit(0)
        said = capfd.readouterr().err
        assert ended.value.code in (0, 1, 2) and "Traceback" not in said
        assert ended.value.code != 2 or said.strip(), "it ends with 2 and says nothing"

    fuzz(st.tuples(values, values), check, examples)
