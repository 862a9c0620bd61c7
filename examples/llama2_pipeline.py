"""The alignment pipeline of Llama 2 (arXiv 2307.09288) in one file, to be read from top to bottom.

    python examples/llama2_pipeline.py                 # a minute or two on two CPU cores; downloads nothing
    python examples/llama2_pipeline.py --scale 0.02    # everything smaller, in seconds: it runs, and learns nothing

A small world stands in for people and for the web: its rules say how helpful and how safe every answer is, so that at
the end the truth can be asked whether the model got better. Each step is one call or two of the library; the recipes
do the same at any size, on several processes, and go on after a kill.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf.annotation.protocol import Pair, preference_of
from rlhf.architecture import LlamaSize
from rlhf.conversation import Conversation, Renderer
from rlhf.data.mixing import mix
from rlhf.data.rows import Preference, Prompt
from rlhf.finetuning.config import FinetuningConfig
from rlhf.finetuning.supervised import finetune, training_renderer
from rlhf.models.policy import load_policy, save_policy
from rlhf.models.pretraining import block_task, new_llama, pack, token_ids, train_tokenizer
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import prompt_stream
from rlhf.ppo.setup import load_roles
from rlhf.rejection.pool import completions_of, rescore
from rlhf.rejection.selection import SelectionConfig, select
from rlhf.rewards.config import GateConfig
from rlhf.rewards.gate import GatedReward, read_gate
from rlhf.rewards.loading import load_reward
from rlhf.rewards.origin import write_origin
from rlhf.rewards.training.accuracy import origin_of
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.train import train_reward_model
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.simulation.annotator import SimulatedAnnotator
from rlhf.simulation.corpus import Mixture, demonstrations, held_out_keys, prompt_sets, web_text
from rlhf.simulation.gold import GoldScorer
from rlhf.simulation.world import World, WorldConfig
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import train


@dataclass
class Pipeline:
    """What all steps share: where they save, the world and its prompts, how much of everything there is."""

    folder: Path
    scale: float
    accelerator: Accelerator
    world: World
    prompts: dict[str, list[Prompt]]  # "train" and "test"; each is tagged helpfulness or safety
    answers: SamplingParams

    def sized(self, count: int) -> int:
        """A count at this run's scale."""
        return max(8, round(count * self.scale))

    def draw(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt], k: int):
        """k sampled answers to each prompt."""
        sampler = InProcessSampler(model, Renderer(tokenizer))
        return sampler.sample([prompt.messages for prompt in prompts], k, self.answers)

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> Path:
        """A checkpoint as transformers loads it."""
        save_policy(model, tokenizer, self.folder / name, self.accelerator)
        return self.folder / name


def pretrain(pipeline: Pipeline, mixture: Mixture) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A base model: next-token prediction on the world's web text (section 2). Yours comes from the hub instead."""
    texts = list(web_text(pipeline.world, mixture, held_out_keys(pipeline.prompts)))
    tokenizer = train_tokenizer(texts, vocab_size=1024)
    model = new_llama(LlamaSize(num_layers=2, num_kv_heads=1, intermediate_size=1024), tokenizer)
    blocks = pack(token_ids(texts, Renderer(tokenizer)), 128, seed=0)
    optimizer = OptimizerConfig(learning_rate=6e-3, warmup_fraction=0.05, eps=1e-8, batch_size=8, micro_batch_size=8)
    train(model, blocks, block_task(128, tokenizer.pad_token_id), optimizer, pipeline.accelerator, name="pretraining")
    return model, tokenizer


def supervise(
    pipeline: Pipeline,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: list[Conversation],
    learning_rate: float,
    name: str,
) -> None:
    """Fine-tune on dialogues; only the answers' tokens have a loss (section 3.1). Rates are those of a tiny model."""
    optimizer = OptimizerConfig(learning_rate, epochs=2, batch_size=32, micro_batch_size=16)
    config = FinetuningConfig(train="last", on_bad_row="skip", optimizer=optimizer)
    renderer = training_renderer(tokenizer, model, config)
    finetune(model, renderer, dialogues, config, pipeline.accelerator, name=name)


def collect_preferences(
    pipeline: Pipeline, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> list[Preference]:
    """Answers to each prompt in pairs; an annotator chooses, and says how much better and whether safe (3.2.1)."""
    prompts = pipeline.prompts["train"]
    pairs = [
        Pair(prompt.messages, one.text, other.text, prompt.domain)
        for prompt, answers in zip(prompts, pipeline.draw(model, tokenizer, prompts, 8), strict=True)
        for one, other in zip(answers[::2], answers[1::2], strict=True)
    ]
    judgements = SimulatedAnnotator(pipeline.world).judge(pairs)
    rows = (preference_of(pair, judgement) for pair, judgement in zip(pairs, judgements, strict=True))
    return [row for row in rows if row is not None]  # None: skipped, two answers alike for instance


def train_reward_models(
    pipeline: Pipeline, sft: Path, tokenizer: PreTrainedTokenizerFast, preferences: list[Preference]
) -> tuple[Path, Path]:
    """Two reward models, each started from the SFT model: ranking loss, and the safety labels' beside it (3.2.2)."""
    own = {domain: [row for row in preferences if row.domain == domain] for domain in ("helpfulness", "safety")}
    optimizer = OptimizerConfig(learning_rate=1e-3, batch_size=16, micro_batch_size=8)
    config = RewardTrainingConfig(margin="small", safety_loss_weight=1.0, optimizer=optimizer)
    folders = []
    kinds = (("helpfulness", "safety", 0.5, False), ("safety", "helpfulness", 0.1, True))
    for domain, other, share, safety_head in kinds:
        rows = mix(own[domain], own[other], share, seed=0)  # the paper's mixtures: half and half; nine to one
        model = train_reward_model(sft, rows, config, pipeline.accelerator, safety_head=safety_head, seed=0)
        model.save(pipeline.folder / domain, tokenizer, pipeline.accelerator)
        origin = origin_of(load_reward(pipeline.folder / domain), rows, seed=0, labelled=safety_head)
        write_origin(pipeline.folder / domain, origin)  # which score counts as 0, for the gate
        folders.append(pipeline.folder / domain)
    return folders[0], folders[1]


def best_of_k(
    pipeline: Pipeline,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    reward: GatedReward,
    k: int,
) -> list[Conversation]:
    """Rejection sampling (3.2.3): K answers to each prompt, scored by both models, the best one of each kept."""
    prompts = pipeline.prompts["train"]
    drawn = completions_of(prompts, pipeline.draw(model, tokenizer, prompts, k), "v1", pipeline.answers.temperature)
    by_id = {prompt.id: prompt for prompt in prompts}
    scored, _ = rescore(drawn, by_id, reward, pipeline.accelerator, "both reward models")
    best = select(scored, SelectionConfig()).chosen
    print(f"best of {k}: mean reward {fmean(row.reward for row in scored):.2f} drawn, "
          f"{fmean(row.reward for row in best):.2f} kept")  # fmt: skip
    return [by_id[row.prompt_id].answered(row.text) for row in best]


def optimise(
    pipeline: Pipeline,
    policy: Path,
    helpfulness: Path,
    safety: Path,
    tokenizer: PreTrainedTokenizerFast,
    iterations: int,
) -> Path:
    """PPO (3.2.3): sample, score, pay for leaving the starting policy, and take a clipped step; again and again."""
    roles = load_roles(policy, helpfulness, safety, value_from=helpfulness, accelerator=pipeline.accelerator)
    size = pipeline.sized(128)
    config = PPOConfig(
        iterations=iterations,
        batch_size=size,
        beta=0.02,  # a small model drifts fast
        optimizer=OptimizerConfig(2e-4, schedule="constant", warmup_fraction=0, batch_size=32, micro_batch_size=32),
    )
    gate = read_gate(GateConfig(), helpfulness, safety)
    ppo = PPO(roles, Renderer(tokenizer), config, pipeline.answers, pipeline.accelerator, gate=gate)
    prompts = prompt_stream(pipeline.prompts["train"], seed=0)
    for iteration in range(iterations):
        figures = ppo.iterate(list(islice(prompts, size)), iteration)
        print(f"ppo {iteration}: reward {figures['reward']:.2f}, {figures['kl']:.2f} nats per answer from its start")
    roles.save_policy(pipeline.folder / "ppo", tokenizer)
    return pipeline.folder / "ppo"


def measure(
    pipeline: Pipeline, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, reward: GatedReward, name: str
) -> dict[str, float]:
    """One answer to each held-out prompt: what the reward models say, and what is true."""
    prompts = pipeline.prompts["test"]
    answers = [samples[0].text for samples in pipeline.draw(model, tokenizer, prompts, 1)]
    drawn = [(prompt, text) for prompt, text in zip(prompts, answers, strict=True) if text.strip()]
    rewards = reward([prompt.answered(text) for prompt, text in drawn], [prompt.domain for prompt, _ in drawn])
    gold = GoldScorer(pipeline.world)
    truth = [(gold.judge(prompt.answered(text)), prompt.domain) for prompt, text in drawn]
    figures = {
        "reward": rewards.reward.mean().item(),
        "gold_helpfulness": fmean(verdict.helpfulness for verdict, _ in truth if verdict.kind != "unsafe"),
        "gold_safety": fmean(verdict.safety for verdict, domain in truth if domain == "safety"),
    }
    print(f"{name:<20}" + "".join(f"{value:>18.2f}" for value in figures.values()))
    return figures


def main(folder: Path, scale: float) -> dict[str, dict[str, float]]:
    """Run all steps; returns each model's figures on the held-out prompts."""
    world = World.make(WorldConfig(seed=0))
    pipeline = Pipeline(folder, scale, make_accelerator(seed=0), world, {}, SamplingParams(max_new_tokens=48))
    mixture = Mixture(
        web_documents=pipeline.sized(5000),
        sft_rows=pipeline.sized(1500),
        train_prompts=pipeline.sized(300),
        test_prompts=pipeline.sized(150),
        validation_prompts=1,
    )
    pipeline.prompts = prompt_sets(world, mixture)

    model, tokenizer = pretrain(pipeline, mixture)
    people = list(demonstrations(world, mixture, held_out_keys(pipeline.prompts)))
    supervise(pipeline, model, tokenizer, people, 2e-3, "sft")
    sft = pipeline.save(model, tokenizer, "sft")

    preferences = collect_preferences(pipeline, model, tokenizer)
    helpfulness, safety = train_reward_models(pipeline, sft, tokenizer, preferences)
    reward = GatedReward.load(helpfulness, safety, GateConfig())

    dialogues = best_of_k(pipeline, model, tokenizer, reward, k=8)
    better = load_policy(sft)  # every version starts its fine-tuning from SFT
    supervise(pipeline, better, tokenizer, dialogues, 1e-3, "best of k")
    rejection = pipeline.save(better, tokenizer, "rejection_sampling")

    ppo = optimise(pipeline, rejection, helpfulness, safety, tokenizer, iterations=max(1, round(8 * scale)))

    print(f"\n{'held-out prompts':<20}{'reward':>18}{'gold helpfulness':>18}{'gold safety':>18}")
    models = {"SFT": model, "best of 8": better, "PPO": load_policy(ppo)}
    return {name: measure(pipeline, one, tokenizer, reward, name) for name, one in models.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="keep the models here (default: they are not kept)")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of everything (default: 1)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        main(given.output or Path(scratch), given.scale)
