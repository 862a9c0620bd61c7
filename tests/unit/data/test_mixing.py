"""Mixes: exact counts, nothing repeated, the same seed the same mix."""

from __future__ import annotations

import pytest

from rlhf.data.mixing import mix, mix_several, other_count
from rlhf.errors import InputError

MINE, OTHERS = [f"m{i}" for i in range(90)], [f"o{i}" for i in range(300)]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 10), (0.5, 90), (0.75, 270), (0.01, 1)])
def test_exact_counts(share, count):
    mixed = mix(MINE, OTHERS, share, seed=0)
    assert other_count(90, share) == count
    assert sorted(row for row in mixed if row in MINE) == sorted(MINE)
    drawn = [row for row in mixed if row in OTHERS]
    assert len(drawn) == len(set(drawn)) == count == len(mixed) - 90


def test_seed_decides():
    assert mix(MINE, OTHERS, 0.5, seed=3) == mix(MINE, OTHERS, 0.5, seed=3) != mix(MINE, OTHERS, 0.5, seed=4)
    assert mix(MINE, OTHERS, 0.5, seed=3)[:90] != MINE


def test_the_draw_is_uniform():
    counts = dict.fromkeys(OTHERS[:10], 0)
    for seed in range(2000):
        for row in mix(["m"], OTHERS[:10], 0.5, seed):
            if row != "m":
                counts[row] += 1
    assert all(abs(count - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5 for count in counts.values())


def test_too_few_others_are_all_taken_and_reported(capsys):
    assert sorted(mix(MINE, OTHERS[:30], 0.5, seed=0)) == sorted(MINE + OTHERS[:30])
    assert "asks for 90 other rows, there are 30: 0.250" in capsys.readouterr().err


def test_bad_shares():
    for share in (1.0, -0.1):
        with pytest.raises(InputError, match="other_share: must be 0 or above and below 1"):
            mix(MINE, OTHERS, share, seed=0)


def test_several_sources_have_their_shares_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    few = [f"f{i}" for i in range(5)]
    mixed = mix_several(MINE, [(OTHERS, 0.3), (few, 0.02)], seed=0)
    counts = [sum(row in source for row in mixed) for source in (MINE, OTHERS, few)]
    assert counts == [90, 40, 3] and len(set(mixed)) == len(mixed)  # 90 / 0.68 rows in all, 0.3 and 0.02 of them
    assert mix_several(MINE, [(OTHERS, 0.5)], seed=3) == mix(MINE, OTHERS, 0.5, seed=3)
    assert capsys.readouterr().err == ""
    mix_several(MINE, [(OTHERS, 0.3), (few, 0.2)], seed=0, name="mixed_data")
    assert "mixed_data: a share of 0.2 asks for 36 rows, there are 5" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"mixed_data: the shares of the mixed sources add up to 1\.1"):
        mix_several(MINE, [(OTHERS, 0.6), (few, 0.5)], seed=0, name="mixed_data")
