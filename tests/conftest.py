"""One tiny tokenizer, policy and reward model for the whole session; the shared data where it is at hand."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from chat_server import ChatServer
from ready_python import ReadyPython, ready_pythons
from tiny_models import make_tiny_tokenizer, save_tiny_policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
REAL_MODEL = Path(os.environ.get("RLHF_CHAT_MODEL", ROOT / "runs" / "smollm2"))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the end of each training collects garbage, and need not look through it again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """What a test draws without a seed is the same behind any other test, also in what its module shares."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout."""
    folder = Path(os.environ.get("RLHF_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real data (../shared/data) is not at hand; set RLHF_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Path:
    """A chat model that has learnt something: SmolLM2-135M-Instruct, or the folder that RLHF_CHAT_MODEL names."""
    if not (REAL_MODEL / "config.json").is_file():
        pytest.skip(f"there is no chat model in {REAL_MODEL}; `python examples/smollm2.py {REAL_MODEL}` makes it")
    return REAL_MODEL


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """See `make_tiny_tokenizer`."""
    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_policy_path(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `save_tiny_policy`."""
    return save_tiny_policy(tmp_path_factory.mktemp("tiny_policy"), tiny_tokenizer)


@pytest.fixture(scope="session")
def ready_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadyPython]:
    """For tests of several processes; they stand in the group "ready", so that one of xdist's workers has them all."""
    with ready_pythons(tmp_path_factory.mktemp("ready")) as ready:
        yield ready


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A healthy one; failed requests are repeated at once."""
    monkeypatch.setattr("rlhf.http_client.FIRST_WAIT", 0.0)
    server = ChatServer()
    yield server
    server.close()
