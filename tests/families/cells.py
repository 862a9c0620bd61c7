"""What is done with a model of every family, each beside plain transformers: one function a column of the table.

A cell that comes to its end works; InputError is a refusal; anything else is a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Preference, Prompt
from rlhf.finetuning.config import FinetuningConfig
from rlhf.finetuning.supervised import AnswerLogprobs, answer_task, finetune
from rlhf.models.checkpoint.saving import probe_logits
from rlhf.models.config import AdapterConfig
from rlhf.models.merging import merged_policy
from rlhf.models.packing import enable_packing, pack_rows
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.setup import load_roles
from rlhf.rewards.loading import load_reward
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.train import train_reward_model
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.synthesis.ghost_attention import training_context
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig

CLOSE = {"atol": 2e-4, "rtol": 2e-4}
ADAPTER = AdapterConfig(r=2, alpha=8.0, dropout=0.0)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, schedule="constant", batch_size=4, micro_batch_size=4)
TALKS: list[Conversation] = [
    [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "sure"},
        {"role": "user", "content": "what is the river of velda?"},
        {"role": "assistant", "content": "the river of velda is mora."},
    ],
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "I cannot help with that"}],
    [{"role": "user", "content": "paint my goat"}, {"role": "assistant", "content": "sure"}],
]
PROMPTS = [talk[:-1] for talk in TALKS]


@dataclass(frozen=True)
class Ground:
    """A family's checkpoint, and a folder to write in."""

    base: Path
    folder: Path

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.base)


def whole_weights(ground: Ground) -> None:
    """A step of fine-tuning: the packed loss is plain transformers'; what is saved, plain transformers loads."""
    policy = load_policy(ground.base)
    _loss_is_plain(policy, _plain(ground.base), ground.tokenizer, "all")
    before = probe_logits(policy)
    _finetune(policy, ground.tokenizer)
    save_policy(policy, ground.tokenizer, ground.folder)
    after = probe_logits(_plain(ground.folder))
    torch.testing.assert_close(after, probe_logits(policy), **CLOSE)
    _changed(before, after)


def lora(ground: Ground) -> None:
    """A step with an adapter; merged, plain transformers loads it, and alone it is the same model again."""
    policy = load_policy(ground.base, adapter=ADAPTER)
    before = probe_logits(policy)
    torch.testing.assert_close(before, probe_logits(load_policy(ground.base)), **CLOSE)
    _finetune(policy, ground.tokenizer)
    want = probe_logits(policy)
    _changed(before, want)
    save_policy(policy, ground.tokenizer, ground.folder / "merged")
    torch.testing.assert_close(probe_logits(_plain(ground.folder / "merged")), want, **CLOSE)
    save_policy(policy, ground.tokenizer, ground.folder / "alone", merge=False)
    torch.testing.assert_close(probe_logits(load_policy(ground.folder / "alone")), want, **CLOSE)


def nf4(ground: Ground) -> None:
    """A step with an adapter over 4 bit; it is the same model again, and both merges can be saved."""
    policy = load_policy(ground.base, adapter=ADAPTER, quantization="nf4")
    before = probe_logits(policy)
    _finetune(policy, ground.tokenizer)
    want = probe_logits(policy)
    _changed(before, want)
    save_policy(policy, ground.tokenizer, ground.folder / "alone")
    torch.testing.assert_close(probe_logits(load_policy(ground.folder / "alone")), want, **CLOSE)
    ways: tuple[Literal["simple", "careful"], ...] = ("simple", "careful")
    for way in ways:
        save_policy(merged_policy(ground.folder / "alone", way, "float32"), ground.tokenizer, ground.folder / way)
    far, near = ((probe_logits(_plain(ground.folder / way)) - want).norm() / want.norm() for way in ways)
    assert near < 0.1, f"the careful merge is {near:.2g} from what was trained, the simple one {far:.2g}"


def reward_model(ground: Ground) -> None:
    """A step of a reward model with both heads; scores do not depend on padding, sharing or saving."""
    _reward(ground, None, whole=True)


def reward_model_lora(ground: Ground) -> None:
    """The same with an adapter, merged and alone."""
    _reward(ground, ADAPTER, whole=True)
    _reward(Ground(ground.base, ground.folder / "alone"), replace(ADAPTER, merge=False), whole=False)


def sampling(ground: Ground) -> None:
    """Greedy answers of prompts of different lengths, several at a time, are those of `generate` one by one."""
    plain, tokenizer = _plain(ground.base), ground.tokenizer
    renderer = Renderer(tokenizer)
    sampler = InProcessSampler(load_policy(ground.base), renderer)
    drawn = sampler.sample(PROMPTS, 2, SamplingParams(temperature=0, max_new_tokens=12))
    for prompt, answers in zip(renderer.prompts(PROMPTS), drawn, strict=True):
        ids = plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=sorted(renderer.end_token_ids),
        )
        want = tuple(ids[0, len(prompt) :].tolist())
        assert [answer.token_ids for answer in answers] == [want, want]
        with torch.no_grad():
            logits = plain(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        logprob = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).sum()
        assert abs(answers[0].logprob - float(logprob)) < 1e-2


def ppo_separate(ground: Ground) -> None:
    """Two iterations: at first policy and reference are one, and the first ratio is 1; the best policy is saved."""
    _ppo(ground, shared=False)


def ppo_shared(ground: Ground) -> None:
    """The same with adapters on one base."""
    _ppo(ground, shared=True)


def ghost_attention(ground: Ground) -> None:
    """A dialogue whose instruction stands in its first turn alone trains on its last answer alone."""
    policy = load_policy(ground.base)
    _loss_is_plain(policy, _plain(ground.base), ground.tokenizer, "last", "please answer in one word")


CELLS: dict[str, Callable[[Ground], None]] = {
    "whole weights": whole_weights,
    "LoRA": lora,
    "NF4": nf4,
    "reward model": reward_model,
    "its LoRA": reward_model_lora,
    "sampling": sampling,
    "PPO": ppo_separate,
    "PPO, shared base": ppo_shared,
    "Ghost Attention": ghost_attention,
}
"""The table's columns, in order."""


def _plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def _finetune(policy: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    config = FinetuningConfig(optimizer=OPTIMIZER, max_length=96)
    finetune(policy, Renderer(tokenizer, max_length=96), TALKS, config, make_accelerator(seed=0))


def _changed(before: Tensor, after: Tensor) -> None:
    assert after.isfinite().all()
    assert (after - before).abs().max() > 1e-3, "the step changed nothing"


def _loss_is_plain(
    policy: Any, plain: Any, tokenizer: PreTrainedTokenizerBase, train: Literal["all", "last"], instruction: str = ""
) -> None:
    """The log-probabilities of the trained tokens, packed in one batch, are those of each row alone."""
    talks = [training_context(talk, instruction) for talk in TALKS] if instruction else TALKS
    rows = Renderer(tokenizer).dialogues(talks, train=train)
    batch: dict[str, Tensor] = answer_task(tokenizer.pad_token_id).collate(rows)  # type: ignore[arg-type]
    with torch.no_grad():
        found = AnswerLogprobs(policy.eval(), packing=True)(**batch)
        want = []
        for row in rows:
            ids = torch.tensor(row.input_ids)
            logprobs = plain(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
            chosen = logprobs.gather(1, ids[1:, None]).squeeze(1)
            want.append(chosen[torch.tensor(row.loss_mask[1:])])
    answers = sum(message["role"] == "assistant" for talk in talks for message in talk)
    assert sum(row.input_ids.count(tokenizer.eos_token_id) for row in rows) == answers
    torch.testing.assert_close(found, torch.cat(want), **CLOSE)


def _preferences() -> list[Preference]:
    good = {"role": "assistant", "content": "the river of velda is mora."}
    bad = {"role": "assistant", "content": "sure"}
    return [
        Preference(f"p{i}", prompt, good["content"], bad["content"], "better", i % 2 == 0, True, "safety", "made")
        for i, prompt in enumerate(PROMPTS)
    ]


def _reward(ground: Ground, adapter: AdapterConfig | None, *, whole: bool) -> None:
    config = RewardTrainingConfig(optimizer=OPTIMIZER, max_length=96, adapter=adapter)
    model = train_reward_model(ground.base, _preferences(), config, make_accelerator(seed=0), safety_head=True, seed=0)
    rows = [row.input_ids for row in Renderer(ground.tokenizer).dialogues(TALKS, train="last")]
    alone = torch.tensor([_score(model, row) for row in rows])
    ids = torch.tensor([[*row, *[2] * (96 - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (96 - len(row)) for row in rows])
    with torch.no_grad():
        for packed in (None, pack_rows(ids, mask, torch.zeros(len(rows), dtype=torch.long))):
            torch.testing.assert_close(model(ids, mask, packed).score, alone, **CLOSE)
    assert alone.std() > 1e-3, "every answer has one score"
    model.save(ground.folder, ground.tokenizer, merge=whole)
    torch.testing.assert_close(load_reward(ground.folder)(TALKS), alone, **CLOSE)


@torch.no_grad()
def _score(model: RewardModel, row: Sequence[int]) -> float:
    ids = torch.tensor([list(row)])
    return float(model(ids, torch.ones_like(ids)).score)


def length(conversations: Sequence[Conversation]) -> Tensor:
    """A reward: how long the answer is."""
    return torch.tensor([float(len(talk[-1]["content"])) for talk in conversations])


def _ppo(ground: Ground, *, shared: bool) -> None:
    tokenizer = ground.tokenizer
    accelerator = make_accelerator(seed=0)
    options: dict[str, Any] = {"shared": True, "adapter": ADAPTER} if shared else {}
    roles = load_roles(ground.base, "cells:length", None, None, accelerator, **options)
    config = PPOConfig(iterations=2, batch_size=6, samples_per_prompt=2, optimizer=_ppo_optimizer(), rows=6)
    ppo = PPO(roles, Renderer(tokenizer), config, SamplingParams(max_new_tokens=8), accelerator)
    prompts = [Prompt(f"p{i}", messages, "helpfulness", "made") for i, messages in enumerate(PROMPTS)]
    first, second = (ppo.iterate(prompts, i) for i in range(2))
    assert abs(first["kl"]) < 1e-4, f"the reference is {first['kl']:.3g} nats from where the policy starts"
    for figures in (first, second):
        assert abs(figures["first_ratio"] - 1) < 1e-4, f"the first ratio is {figures['first_ratio']:.4f}"
    assert second["kl_k2"] > 0, "the policy did not move"
    roles.save_policy(ground.folder, tokenizer)
    model = roles.policy
    if not shared:
        torch.testing.assert_close(probe_logits(_plain(ground.folder)), probe_logits(model), **CLOSE)
    else:
        assert probe_logits(load_policy(ground.folder)).isfinite().all()


def _ppo_optimizer() -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=1e-2, schedule="constant", warmup_fraction=0.0, batch_size=6, micro_batch_size=3
    )


def packs(base: Path) -> bool:
    """Whether rows of this family are packed, and prompts shared."""
    return enable_packing(load_policy(base))
