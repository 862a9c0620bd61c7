from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlhf.configuration import parse_config
from rlhf.conversation import LLAMA2_CHAT_TEMPLATE, Conversation, Renderer
from rlhf.errors import InputError
from rlhf.metrics import read_metrics
from rlhf.models.policy import load_tokenizer
from rlhf.stage import inputs_of, open_stage

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import sft


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    words = ["goat", "river", "doctor", "velda"]
    rows = [
        [
            {"role": "user", "content": f"what is {words[i % 4]} {i} ?"},
            {"role": "assistant", "content": f"the {words[i % 4]} is mora"},
        ]
        for i in range(40)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def arguments(tmp_path: Path, policy: Path, data: Path) -> list[str]:
    given = {"output": tmp_path / "sft", "policy": policy, "data": data, "heldout_share": 0.3}
    training = {"learning_rate": 0.01, "batch_size": 8, "micro_batch_size": 4}
    given |= {f"finetuning.optimizer.{name}": value for name, value in training.items()}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def test_sft_trains_and_writes_a_checkpoint(tiny_policy_path: Path, data: Path, tmp_path: Path) -> None:
    config = parse_config(sft.SftConfig, arguments(tmp_path, tiny_policy_path, data))
    assert config.finetuning.optimizer.epochs == 2
    sft.main(config)
    output = tmp_path / "sft"
    metrics = read_metrics(output / "metrics.jsonl")
    losses = [row["loss"] for row in metrics if "loss" in row]
    heldout = [row["heldout_loss"] for row in metrics if "heldout_loss" in row]
    assert losses[-1] < losses[0] - 1
    assert len(heldout) == 2 and heldout[1] < heldout[0]
    AutoModelForCausalLM.from_pretrained(output / "checkpoint")
    stage = json.loads((output / "stage.json").read_text())
    assert set(stage["inputs"]) == {"policy", "data"}
    with pytest.raises(InputError, match="exists already"):
        sft.main(config)


def test_chat_template_kwargs_given_once_are_the_checkpoint_s(
    tiny_policy_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path
) -> None:
    """The stages after it, and whatever serves it, prompt it as it was trained; a stage without them adds none."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    folder = Path(pytest.importorskip("trl").__path__[0], "chat_templates")
    tokenizer.chat_template = (folder / "qwen3.jinja").read_text(encoding="utf-8")
    start = tmp_path / "start"
    shutil.copytree(tiny_policy_path, start)
    tokenizer.save_pretrained(start)
    options = ["--chat_template_kwargs", "{enable_thinking: false}", "--finetuning.optimizer.epochs", "1"]
    sft.main(parse_config(sft.SftConfig, [*arguments(tmp_path, start, data), *options]))
    made = tmp_path / "sft" / "checkpoint"
    open_stage(parse_config(sft.SftConfig, [*arguments(tmp_path / "next", made, data)]))
    asked: Conversation = [{"role": "user", "content": "what ?"}]
    served = AutoTokenizer.from_pretrained(made)
    text = served.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert served.decode(Renderer(load_tokenizer(made)).prompt_ids(asked)) == text
    assert not Renderer(load_tokenizer(made)).writing.thinks and Renderer(load_tokenizer(start)).writing.thinks


def test_sft_with_an_adapter_keeps_the_other_weights(tiny_policy_path: Path, data: Path, tmp_path: Path) -> None:
    config = parse_config(sft.SftConfig, [*arguments(tmp_path, tiny_policy_path, data), "--adapter.r", "4"])
    sft.main(config)
    before = AutoModelForCausalLM.from_pretrained(tiny_policy_path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "checkpoint").state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all("_proj" in name for name in changed)


def test_a_base_without_chat_template_and_pad_token_gets_both_and_keeps_them(
    shared_data: Path, data: Path, tmp_path: Path
) -> None:
    """stories260K as it lies: what is saved has the template and one more embedding."""
    given = arguments(tmp_path, shared_data / "stories260K", data)
    with pytest.raises(InputError, match="it has no chat template"):
        sft.main(parse_config(sft.SftConfig, given))
    with pytest.raises(InputError, match="chat_template: llama3 is no file; give llama2"):
        sft.main(parse_config(sft.SftConfig, [*given, "--chat_template", "llama3"]))
    sft.main(parse_config(sft.SftConfig, [*given, "--chat_template", "llama2"]))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft/checkpoint")
    assert tokenizer.chat_template == LLAMA2_CHAT_TEMPLATE
    assert tokenizer.pad_token_id == 512 and tokenizer.pad_token_id != tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft/checkpoint")
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 513
    assert model.config.pad_token_id == 512


def test_the_template_s_file_is_an_input(tiny_policy_path: Path, data: Path, tmp_path: Path) -> None:
    """A killed run must not go on with rows of another template."""
    template = tmp_path / "template.jinja"
    template.write_text(LLAMA2_CHAT_TEMPLATE)
    given = []
    for name in (str(template), "llama2"):
        options = [*arguments(tmp_path, tiny_policy_path, data), "--chat_template", name]
        given.append(inputs_of(parse_config(sft.SftConfig, options)).get("chat_template"))
    assert given == [template, None]


def test_bad_options_are_answered_before_anything_is_loaded(
    tiny_policy_path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rlhf.models.policy", None)
    given = arguments(tmp_path, tiny_policy_path, data)
    with pytest.raises(InputError, match="give an adapter"):
        parse_config(sft.SftConfig, [*given, "--quantization", "nf4"])
    monkeypatch.chdir(tmp_path)  # no run of this checkout's is to be found
    with pytest.raises(InputError, match=r"policy: runs/demo/base does not exist; `make demo` writes it"):
        sft.main(parse_config(sft.SftConfig, [*given, "--policy", "runs/demo/base"]))
    data.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    with pytest.raises(InputError, match=r"chats\.jsonl:1: .*last message must be the assistant's"):
        sft.main(parse_config(sft.SftConfig, given))
    data.write_text('{"prompt": "hello", "completion": "sure"}\n')
    with pytest.raises(InputError, match=r"heldout_share: 0\.9999 holds out all 1 dialogues of .*chats\.jsonl"):
        sft.main(parse_config(sft.SftConfig, [*given, "--heldout_share", "0.9999"]))
    assert not (tmp_path / "sft").exists()


def test_a_folder_of_data_is_an_input(tiny_policy_path: Path, data: Path, tmp_path: Path) -> None:
    """A killed run must not go on with rows of another folder."""
    folder = tmp_path / "set"
    folder.mkdir()
    data.rename(folder / "train.jsonl")
    config = parse_config(sft.SftConfig, arguments(tmp_path, tiny_policy_path, folder))
    assert inputs_of(config) == {"policy": tiny_policy_path, "data": folder}
