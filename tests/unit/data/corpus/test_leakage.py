"""Leakage by embeddings, blockwise, train first; and what is dealt to which file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf.data.corpus.dealing import PARTS, Candidate, Dealer
from rlhf.data.corpus.leakage import EmbeddingFile, find_leaks, nearest, unit
from rlhf.errors import InputError


def embedding_file(tmp_path, vectors, pieces=1):
    embeddings = EmbeddingFile(tmp_path / "embeddings")
    for piece in np.array_split(vectors, pieces):
        embeddings.append(piece)
    return embeddings


def at_angle(degrees):
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_nearest_is_the_whole_matrix_s_maximum(block):
    rng = np.random.default_rng(0)
    rows, others = unit(rng.normal(size=(30, 8))), unit(rng.normal(size=(50, 8)))
    cosine, index = nearest(rows, others, block)
    whole = rows @ others.T
    np.testing.assert_allclose(cosine, whole.max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(index, whole.argmax(axis=1))
    assert nearest(rows, others[:0], block)[1].tolist() == [-1] * 30


def test_train_loses_first_and_test_nothing(tmp_path):
    """cos 0.6 is at 53.13 degrees: 50 degrees leak, 56 do not."""
    angles = [0, 50, 106, 200, 56]
    parts = np.array([2, 1, 0, 0, 1])
    embeddings = embedding_file(tmp_path, [at_angle(a) for a in angles], pieces=2)
    drop, cosine, partner = find_leaks(embeddings, parts, 0.6)
    # the validation row at 50 degrees leaks to the test row; so train's at 106 is compared with the one at 56 alone
    assert drop.tolist() == [False, True, True, False, False]
    assert partner.tolist()[1:3] == [0, 4]
    np.testing.assert_allclose(cosine[1:4], [np.cos(np.radians(a)) for a in (50, 50, 144)], rtol=1e-5)
    assert cosine[0] == -1
    embeddings.close()
    assert not (tmp_path / "embeddings").exists()


def test_a_cosine_of_the_threshold_leaks(tmp_path):
    embeddings = embedding_file(tmp_path, [[1.0, 0.0], [3.0, 4.0]])
    assert find_leaks(embeddings, np.array([2, 0]), float(np.float32(0.6)))[0].tolist() == [False, True]
    assert find_leaks(embeddings, np.array([2, 0]), 0.601)[0].tolist() == [False, False]


def test_after_it_nothing_leaks_any_more(tmp_path):
    rng = np.random.default_rng(1)
    vectors, parts = rng.normal(size=(600, 6)), rng.choice(3, size=600, p=[0.6, 0.2, 0.2])
    drop, _, _ = find_leaks(embedding_file(tmp_path, vectors, pieces=5), parts, 0.8)
    kept, of = unit(vectors)[~drop], parts[~drop]
    cosines = kept @ kept.T
    assert cosines[of[:, None] != of[None, :]].max() < 0.8
    assert 0 < drop[parts == 0].sum() < (parts == 0).sum() and not drop[parts == 2].any()


def test_without_held_out_rows_nothing_leaks(tmp_path):
    drop, cosine, _ = find_leaks(embedding_file(tmp_path, np.eye(3)), np.zeros(3, dtype=np.int64), 0.1)
    assert not drop.any() and (cosine == -1).all()


def test_an_embedding_without_direction_is_refused():
    with pytest.raises(InputError, match="embedding"):
        unit([[0.0, 0.0]])
    with pytest.raises(InputError, match="embedding"):
        unit([[np.nan, 1.0]])


def candidate(part, question, kind="sft", rows=1):
    return Candidate(part, kind, question, [{"id": f"{question}.{i}"} for i in range(rows)])


def test_dealing_writes_what_stays(tmp_path):
    directions = {"same": [1, 0], "too": [0.9, 0.1], "far": [0, 1], "else": [-1, 0]}
    dealer = Dealer(tmp_path, lambda questions: [directions[q] for q in questions], 0.6, seed=0)
    dealer.add([[candidate("test", "same"), candidate("train", "too", "preferences", 2)]])
    dealer.add([[candidate("train", "far", "prompts"), candidate("train", "else", rows=2)]])
    rows, leakage = dealer.finish()
    assert rows == {
        "sft": {"train": 2, "validation": 0, "test": 1},
        "prompts": {"train": 1, "validation": 0, "test": 0},
    }
    assert {part: (leakage["parts"][part]["in"], leakage["parts"][part]["out"]) for part in PARTS} == {
        "train": (3, 2),
        "validation": (0, 0),
        "test": (1, 1),
    }
    (example,) = leakage["examples"]
    assert (example["question"], example["other_question"], example["other_part"]) == ("too", "same", "test")
    written = {f.name: [json.loads(line)["id"] for line in f.open()] for f in tmp_path.iterdir()}
    assert written == {
        "sft_test.jsonl": ["same.0"],
        "sft_train.jsonl": ["else.0", "else.1"],
        "prompts_train.jsonl": ["far.0"],
    }


def test_without_embeddings_all_stays(tmp_path):
    dealer = Dealer(tmp_path, None, 0.6, seed=0)
    dealer.add([[candidate("test", "same"), candidate("train", "same")]])
    assert dealer.finish() == ({"sft": {"train": 1, "validation": 0, "test": 1}}, None)
