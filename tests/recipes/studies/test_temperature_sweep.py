from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

import pytest

from rlhf.configuration import parse_config
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.rejection.curves import BestTemperature, CurvePoint
from rlhf.rejection.diversity import self_bleu
from rlhf.rejection.pool import read_completions
from rlhf.rejection.temperature import Sweep, read_best_temperature

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes/studies"))
import temperature_sweep
from temperature_sweep import TemperatureSweepConfig

REWARD = """
import torch

def variety(conversations):
    return torch.tensor([float(len(set(c[-1]["content"]))) for c in conversations])
"""


@pytest.fixture
def sweep(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a sweep; returns its folder."""
    (tmp_path / "reward_of_the_sweep.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}], "source": f"s/{'ab'[i % 2]}"}
        for i in range(8)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(**options: object) -> Path:
        given = {
            "output": tmp_path / "sweep",
            "policy": tiny_policy_path,
            "prompts": prompts,
            "helpfulness": "reward_of_the_sweep:variety",
            "safety": "reward_of_the_sweep:variety",
            "temperatures": "[0.05, 1.5, 0.8]",
            "num_samples": 4,
            "best_of": 3,
            "groups": json.dumps({"creative": ["s/a"], "factual": ["s/b"]}),
            "sampling.max_new_tokens": 120,
            **options,
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        temperature_sweep.main(parse_config(TemperatureSweepConfig, arguments))
        return tmp_path / "sweep"

    return start


def test_figures_of_a_sweep(sweep, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep()
    figures = json.loads((folder / "sweep.json").read_text())
    assert set(figures) == Sweep.__required_keys__ and set(figures["best"]) == BestTemperature.__required_keys__
    assert set(figures["temperatures"][0]["curve"][0]) == CurvePoint.__required_keys__
    rows = read_completions(folder / "completions.parquet")
    closing = json.loads((folder / "stage.json").read_text())["closing"]
    assert closing["suspicious"] == suspicious_ends(row.finished for row in rows) != []
    assert [row["temperature"] for row in figures["temperatures"]] == [0.05, 0.8, 1.5]
    assert (figures["prompts"], figures["groups"]) == (8, {"creative": 4, "factual": 4})
    lowest = min(row.reward for row in rows)
    maxima = {}
    for entry in figures["temperatures"]:
        own = [row for row in rows if row.temperature == pytest.approx(entry["temperature"])]
        assert [(row.prompt_id, row.index) for row in own] == [(f"p{p}", i) for p in range(8) for i in range(4)]
        usable = [row.reward if row.finished and row.text.strip() else lowest for row in own]
        assert [point["k"] for point in entry["curve"]] == [1, 2, 3, 4]
        assert entry["curve"][0]["max"] == pytest.approx(fmean(usable))
        assert entry["curve"][3]["max"] == pytest.approx(fmean(max(usable[i : i + 4]) for i in range(0, 32, 4)))
        maxima[entry["temperature"]] = entry["curve"][2]["max"]
        for name, first in (("creative", 0), ("factual", 4)):
            texts = [[row.text for row in own[i : i + 4]] for i in range(first, 32, 8)]
            assert entry["self_bleu"][name]["mean"] == pytest.approx(fmean(map(self_bleu, texts)))
        assert entry["finished_share"] == fmean(row.finished for row in own)
        assert entry["length"]["mean"] == pytest.approx(fmean(len(row.token_ids) for row in own))
    assert read_best_temperature(folder / "sweep.json") == max(maxima, key=lambda t: maxima[t])
    alike = [entry["self_bleu"]["creative"]["mean"] for entry in figures["temperatures"]]
    assert alike[0] > alike[2], "warmer answers differ more"
    page = (folder / "index.html").read_text()
    assert "Best of 3" in page and "Self-BLEU, creative" in page
    assert "KL of the best of k" in page and page.count("<svg ") == 6
    assert "best at temperature" in capsys.readouterr().out


def test_some_prompts_and_no_groups(sweep) -> None:
    figures = json.loads((sweep(num_prompts=3, groups="{}", seed=5) / "sweep.json").read_text())
    assert figures["prompts"] == 3 and figures["groups"] == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperatures": "[1.0]"}, r"temperatures: name two or more, each once, got \[1.0\]"),
        ({"temperatures": "[1.0, 1.0]"}, "temperatures: name two or more"),
        ({"temperatures": "[0.0, 1.0]"}, "temperatures: must be above 0, got 0.0"),
        ({"best_of": 5}, r"best_of: must lie between 1 and num_samples \(4\), got 5"),
        ({"num_samples": 1}, "num_samples: must be at least 2, got 1"),
        ({"groups": '{"x": ["s/c"]}'}, "groups: no drawn prompt has the source 's/c'"),
        ({"policy": "runs/demo/none"}, "policy: runs/demo/none does not exist; `make demo` writes it"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(sweep, tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sweep(**options)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"best": {"temperature": "1"}}', '{"best": {"temperature": 0}}'])
def test_what_is_no_sweep_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match=r"temperature_from: .*sweep.json is no sweep.json of"):
        read_best_temperature(tmp_path / "sweep.json")
