"""Rejection-sampling fine-tuning (Llama 2 paper, section 3.2.3).

Sample K answers to each prompt from the newest policy, score them with the newest reward models, keep the best answer
of each prompt, and fine-tune on the kept ones as in SFT. Every version starts its fine-tuning from the same checkpoint.
The best is taken over the answers of ALL versions so far, rescored with the newest reward models: choosing among the
last version's alone made the paper's V3 forget skills.

    accelerate launch recipes/rejection_sampling.py --config recipes/configs/embedded/rejection_sampling.yaml

Writes into the output folder: checkpoint/, completions.parquet (this version's answers, scored: the pool of the next
versions), selected.jsonl (the dialogues it trained on), selection.json (rewards, best-of-k curve, versions chosen),
metrics.jsonl.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.configuration import run_recipe
from rlhf.conversation import Conversation, Renderer
from rlhf.data.jsonl import file_format, write_rows
from rlhf.data.loading import load_conversations, load_prompts
from rlhf.data.mixing import mix
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.iteration.pool import completions_of, pool_sizes, read_pool, rescore, write_completions
from rlhf.iteration.selection import SelectionConfig, select, selected_rows, selection_figures
from rlhf.iteration.sweep import read_best_temperature
from rlhf.models.config import AdapterConfig
from rlhf.rewards.specs import reward_files
from rlhf.sampling.protocol import Sampler, SamplingParams
from rlhf.sampling.server import ServerConfig, ServerSampler
from rlhf.sampling.shards import kept_samples
from rlhf.stage import open_stage, require_files, write_json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RejectionSamplingConfig:
    """Rejection-sampling fine-tuning.

    Args:
        output: folder of this stage.
        policy: checkpoint folder that the answers are sampled from, the newest.
        fine_tune_from: checkpoint folder that the fine-tuning starts from, the same for every version.
        prompts: prompts to answer (file or hub name); those of domain "safety" are rewarded for safety alone.
        helpfulness: reward-model folder, `package.module:attribute` of your own reward function, or the YAML file of an
            ensemble of them.
        safety: the same for safety.
        pool: folder of earlier versions' `<version>.parquet`; null: choose among this version's answers only.
        pool_top: of each earlier version rescore its own best so many answers to a prompt, to save work; 0: all.
        earlier_prompts: prompts of earlier versions (files or hub names) that are not asked again: the pool's answers
            to them are chosen among too.
        sft_data: dialogues to mix in, against forgetting; null: none.
        sft_share: their share of all rows.
        version: name of this version in the pool.
        num_samples: K, answers drawn for each prompt.
        sampling: how they are drawn.
        temperature_from: sweep.json of recipes/temperature_sweep.py: draw at its best temperature instead.
        selection: which answers are kept; the best one of each prompt, unless told otherwise.
        batch_size: answers drawn at once.
        server: an OpenAI-compatible server that answers as the policy; null: this recipe's own sampler does.
        adapter: train a LoRA adapter and not the weights; null: full fine-tuning.
        quantization: nf4 holds both policies' weights in 4 bit, which needs an adapter; null: as they are.
        finetuning: length, masking, schedule.
        seed: added to sampling.seed; also of the mix, the rows' order and dropout.
    """

    output: Path
    policy: Path
    fine_tune_from: Path
    prompts: str
    helpfulness: str
    safety: str
    pool: Path | None = None
    pool_top: int = 0
    earlier_prompts: tuple[str, ...] = ()
    sft_data: Path | None = None
    sft_share: float = 0.2
    version: str = "v1"
    num_samples: int = 16
    sampling: SamplingParams = field(default_factory=SamplingParams)
    temperature_from: Path | None = None
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    batch_size: int = 256
    server: ServerConfig | None = None
    adapter: AdapterConfig | None = None
    quantization: Literal["nf4"] | None = None
    finetuning: FinetuningConfig = field(default_factory=lambda: FinetuningConfig(train="last", on_bad_row="skip"))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.pool_top < 0:
            raise InputError(f"pool_top: must be 0 (all) or above, got {self.pool_top}")
        if not 0 <= self.sft_share < 1:
            raise InputError(f"sft_share: must be 0 or above and below 1, got {self.sft_share}")
        if self.sampling.temperature == 0 and self.num_samples > 1:
            raise InputError("sampling.temperature: at 0 all answers of a prompt are the same; raise it, e.g. to 1")
        if self.quantization is not None and self.adapter is None:
            raise InputError("quantization: 4-bit weights cannot be trained; give an adapter too, e.g. --adapter.r 64")


def main(config: RejectionSamplingConfig) -> None:
    inputs: dict[str, Any] = {"policy": config.policy, "fine_tune_from": config.fine_tune_from}
    sources = {"prompts": config.prompts} | {f"earlier_prompts.{i}": s for i, s in enumerate(config.earlier_prompts)}
    inputs |= {name: Path(source) for name, source in sources.items() if file_format(source)}
    inputs |= {n: p for n in ("pool", "sft_data", "temperature_from") if (p := getattr(config, n)) is not None}
    require_files(**inputs)
    inputs |= reward_files(helpfulness=config.helpfulness, safety=config.safety)
    prompts = load_prompts(config.prompts)
    by_id: dict[str, Prompt] = {}
    for prompt in [*(p for source in config.earlier_prompts for p in load_prompts(source)), *prompts]:
        if by_id.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise InputError(f"earlier_prompts: two prompts have the id {prompt.id!r}; give each its own")
    pool = read_pool(config.pool, top=config.pool_top) if config.pool is not None else []
    params = replace(config.sampling, seed=config.sampling.seed + config.seed)
    if config.temperature_from is not None:
        params = replace(params, temperature=read_best_temperature(config.temperature_from))
    if any(row.version == config.version for row in pool):
        raise InputError(f"version: {config.version} is in the pool already; give this version another name")
    judges = f"{config.helpfulness} & {config.safety}"
    messages = [prompt.messages for prompt in prompts]
    served = config.server.model if config.server is not None else None
    kept = kept_samples(messages, config.num_samples, params, quantization=config.quantization, served=served)
    sft_dialogues = load_conversations(config.sft_data) if config.sft_data is not None else []

    from rlhf.finetuning.supervised import finetune, training_renderer
    from rlhf.metrics import MetricsLog
    from rlhf.models.policy import load_policy, load_tokenizer, save_policy
    from rlhf.rewards.gate import refuse_broken_rewards
    from rlhf.rewards.loading import load_reward
    from rlhf.sampling.multi_process import sample_distributed
    from rlhf.training.accelerator import make_accelerator

    accelerator = make_accelerator(seed=config.seed)
    with open_stage(config.output, config, inputs=inputs, keep=kept) as folder:
        accelerator.wait_for_everyone()
        helpfulness, safety = (load_reward(s, device=accelerator.device) for s in (config.helpfulness, config.safety))
        refuse_broken_rewards(prompts, helpfulness, safety)

        # sample K answers to each prompt
        sampler = policy_sampler(config, accelerator.device)
        shards = folder / kept.name
        samples = sample_distributed(sampler, messages, config.num_samples, params, accelerator, shards=shards)
        drawn = completions_of(prompts, samples, config.version, params.temperature)
        del sampler

        # score them, and those of earlier versions, with the newest reward models
        candidates = [row for row in pool if row.prompt_id in by_id] + drawn
        candidates, used_safety = rescore(candidates, by_id, helpfulness, safety, accelerator, judges)
        drawn, used_safety = candidates[-len(drawn) :], used_safety[-len(drawn) :]
        del helpfulness, safety

        # keep the best answer of each prompt
        selection = select(candidates, config.selection)
        dialogues: list[Conversation] = [
            [*by_id[row.prompt_id].messages, {"role": "assistant", "content": row.text}] for row in selection.chosen
        ]
        if accelerator.is_main_process:
            write_completions(folder / "completions.parquet", drawn)
            write_rows(folder / "selected.jsonl", selected_rows(selection.chosen, dialogues))
            figures = selection_figures(drawn, config.num_samples, used_safety, candidates, selection)
            figures["pool"] = pool_sizes(config.pool) if config.pool is not None else {}
            figures["pool_left_out"] = len(pool) + len(drawn) - len(candidates)
            write_json(folder / "selection.json", figures)
        if not selection.chosen:
            reasons = ", ".join(f"{count} {reason}" for reason, count in selection.left_out.items())
            raise InputError(
                f"selection: no answer is left to train on ({reasons}); raise sampling.max_new_tokens or ask for less"
            )

        # fine-tune on them
        tokenizer = load_tokenizer(config.fine_tune_from)
        policy = load_policy(config.fine_tune_from, adapter=config.adapter, quantization=config.quantization)
        finetune(
            policy,
            training_renderer(tokenizer, policy, config.finetuning),
            mix(dialogues, sft_dialogues, config.sft_share, config.seed) if sft_dialogues else dialogues,
            config.finetuning,
            accelerator,
            MetricsLog(folder, accelerator),
            config.seed,
            name=f"rejection sampling {config.version}",
        )
        merge = config.adapter is None or config.adapter.merge
        save_policy(policy, tokenizer, folder / "checkpoint", accelerator, merge=merge)
        accelerator.wait_for_everyone()


def policy_sampler(config: RejectionSamplingConfig, device: torch.device) -> Sampler:
    """The server, or the policy's weights in this process."""
    from rlhf.models.policy import load_policy, load_tokenizer

    renderer = Renderer(load_tokenizer(config.policy))
    if config.server is not None:
        return ServerSampler(config.server, renderer)

    from rlhf.sampling.in_process import InProcessSampler

    policy = load_policy(config.policy, quantization=config.quantization)
    return InProcessSampler(policy if policy.device == device else policy.to(device), renderer, config.batch_size)


if __name__ == "__main__":
    run_recipe(main, RejectionSamplingConfig)
