"""PPO on a real pretrained model with a reward that anyone can check: stories that end happily within 60 tokens.

    OMP_NUM_THREADS=1 python benchmarks/ppo_stories.py [MODEL]     # default: ../shared/data/stories260K

The model (260,032 parameters, trained on TinyStories) has no chat template and no pad token: it gets a template that
puts prompt and answer one after the other, and its begin token, which parts its stories, as the end token. An answer is
worth 1 where its last sentence is whole and has a word of happiness, else 0. RLOO, 4 answers per prompt, no value;
it stops at a KL of 15 nats per answer. About 2 minutes of processor time. The last line is JSON: held-out reward after
over before.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from rlhf.configuration import parse_config
from rlhf.conversation import Conversation
from rlhf.jsonl import write_rows
from rlhf.metrics import read_metrics
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.paths import require_files

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
import ppo

OUTPUT = Path("runs/stories")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
HAPPY = re.compile(r"\b(happy|happily|smiled?|laughed|hugged|loved|proud|glad|fun|best friends|thanked)\b")
NAMES = ("Lily", "Tim", "Mia", "Ben", "Sue", "Max", "Anna", "Tom")
WHO = ("little girl", "little boy", "small dog", "big cat", "brave bird", "old bear", "funny frog", "kind bunny")
THEN = ("One day,", "Every day,")


def happy_end(conversations: Sequence[Conversation]) -> Tensor:
    """1 where the last sentence is whole and happy."""
    return torch.tensor([float(ends_happily(c[-1]["content"])) for c in conversations])


def ends_happily(story: str) -> bool:
    sentences = re.findall(r"[^.!?]+[.!?]+[\"']?", story.strip())
    return bool(sentences) and story.strip().endswith(sentences[-1]) and bool(HAPPY.search(sentences[-1].lower()))


def harmless(conversations: Sequence[Conversation]) -> Tensor:
    return torch.full((len(conversations),), 5.0)


def prepare(model: Path, folder: Path) -> None:
    """The policy with template, end and pad token; 96 training and 32 held-out openings."""
    if (folder / "validation.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    policy = folder / "policy"
    policy.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(model / name, policy / name)
    tokenizer = from_pretrained(AutoTokenizer, model, eos_token="<s>", pad_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(policy)
    openings = [
        f"Once upon a time, there was a {who} named {name}. {then}" for who in WHO for name in NAMES for then in THEN
    ]
    rows = [
        {"id": f"story{i}", "messages": [{"role": "user", "content": opening}]} for i, opening in enumerate(openings)
    ]
    write_rows(folder / "prompts.jsonl", [row for i, row in enumerate(rows) if i % 4])
    write_rows(folder / "validation.jsonl", [row | {"id": f"{row['id']}-{i}"} for i in range(8) for row in rows[::4]])


def main() -> None:
    model = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/stories260K")
    require_files(model=model)
    prepare(model, OUTPUT)
    settings = {
        "output": OUTPUT / "ppo",
        "policy": OUTPUT / "policy",
        "helpfulness": "ppo_stories:happy_end",
        "safety": "ppo_stories:harmless",
        "prompts": OUTPUT / "prompts.jsonl",
        "validation_prompts": OUTPUT / "validation.jsonl",
        "sampling.max_new_tokens": 60,
        "ppo.estimator": "rloo",
        "ppo.samples_per_prompt": 4,
        "ppo.iterations": 40,
        "ppo.batch_size": 128,
        "ppo.beta": 0.02,
        "ppo.missing_end_penalty": 0.0,
        "ppo.evaluate_every": 5,
        "ppo.validation_size": 256,
        "ppo.max_kl": 15.0,
        "ppo.optimizer.learning_rate": 2e-4,
        "ppo.optimizer.batch_size": 32,
        "ppo.optimizer.micro_batch_size": 32,
    }
    if not (OUTPUT / "ppo").exists():
        given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        ppo.main(parse_config(ppo.PPORecipeConfig, given))
    result = json.loads((OUTPUT / "ppo/ppo.json").read_text())
    rows = [row for row in read_metrics(OUTPUT / "ppo/metrics.jsonl") if "heldout_reward" in row]
    print("iteration  happy ends      KL  tokens  ended  repetition")
    for row in rows:
        figures = (row[f"heldout_{name}"] for name in ("reward", "kl", "length", "finished_share", "repetition"))
        reward, kl, length, ended, repetition = figures
        print(f"{row['step']:9}  {reward:10.1%}  {kl:6.2f}  {length:6.1f}  {ended:5.1%}  {repetition:10.1%}")
    last = [json.loads(line) for line in (OUTPUT / "ppo/samples.jsonl").read_text().splitlines()]
    for row in (row for row in last if row["step"] in (0, result["best_iteration"])):
        print(f"{row['step']:3} {row['reward']:.0f} {row['messages'][-1]['content']} … {row['answer']}")
    kl = next(row["heldout_kl"] for row in rows if row["step"] == result["best_iteration"])
    ours, peer = round(result["best_reward"], 3), round(result["first_reward"], 3)
    summary = {"name": "ppo_stories", "ours": ours, "peer": peer, "ratio": round(ours / peer, 2)}
    print(json.dumps(summary | {"unit": "share of happy ends", "kl": round(kl, 2)}))


if __name__ == "__main__":
    main()
