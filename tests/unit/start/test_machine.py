"""What is read of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.start.machine import cpu_features, this_machine


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("processor\t: 0\nmodel name\t: a bf16 one\nflags\t\t: fpu avx512f avx512_bf16\n\nflags\t\t: more\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2\nvmx flags\t: avx512_bf16\n", False),
        ("", False),
        (None, False),
    ],
    ids=["x86", "ARM", "without", "empty", "no such file"],
)
def test_whether_the_cpu_multiplies_in_bfloat16(
    said: str | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if said is not None:
        file.write_text(said)
    features = cpu_features(file)
    monkeypatch.setattr("rlhf.start.machine.cpu_features", lambda: features)
    monkeypatch.setattr("rlhf.start.machine.has_gpu", lambda: False)
    assert this_machine().bfloat16 is found
