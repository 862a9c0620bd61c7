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

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rlhf.configuration import run_recipe
from rlhf.data.loading import is_local, load_conversations, load_prompts
from rlhf.data.mixing import mix_several
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.iteration.pool import completions_of, pool_sizes, prompts_by_id, read_pool, rescore, write_completions
from rlhf.iteration.selection import SelectionConfig, refuse_empty, select, selection_figures, write_selected
from rlhf.iteration.sweep import read_best_temperature
from rlhf.models.checkpoint import require_checkpoint
from rlhf.models.config import AdapterConfig
from rlhf.models.context import TooLong
from rlhf.rewards.config import GateConfig
from rlhf.rewards.specs import reward_files
from rlhf.sampling.early_rejection import EarlyRejectionConfig
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.server import ServerConfig
from rlhf.sampling.shards import kept_samples
from rlhf.stage import open_stage, require_files, require_new, write_json


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
        safety: the same for safety; null: helpfulness alone is the reward, and there is no gate.
        gate: when the safety score counts in place of the helpfulness score.
        too_long: a prompt, or a dialogue that a reward model scores, that is longer than a model's context: cut (oldest
            turns first, then from the left), unfinished (an answer that ends with the context, or had to be cut for a
            reward model, counts as not finished), or refuse. How many is said.
        pool: folder of earlier versions' `<version>.parquet`; null: choose among this version's answers only.
        pool_top: of each earlier version rescore its own best so many answers to a prompt, to save work; 0: all.
        earlier_prompts: prompts of earlier versions (files or hub names) that are not asked again: the pool's answers
            to them are chosen among too.
        sft_data: dialogues to mix in, against forgetting; null: none.
        sft_share: their share of all rows.
        mixed_data: file or hub name -> its share of all rows: more dialogues to mix in, such as the rows.jsonl of an
            earlier Ghost Attention, which this fine-tuning, as it starts from `fine_tune_from`, would lose.
        version: name of this version in the pool.
        num_samples: K, answers drawn for each prompt.
        sampling: how they are drawn.
        temperature_from: sweep.json of recipes/temperature_sweep.py: draw at its best temperature instead.
        selection: which answers are kept; the best one of each prompt, unless told otherwise.
        early_rejection: give up a prompt's worst answers while they are written (arXiv 2410.20290); null: write all.
        batch_size: answers drawn at once; null: as many as memory holds, and no more than pay.
        compile: decode in compiled steps of a fixed shape, on a GPU captured as graphs.
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
    safety: str | None = None
    gate: GateConfig = field(default_factory=GateConfig)
    too_long: TooLong = "cut"
    pool: Path | None = None
    pool_top: int = 0
    earlier_prompts: tuple[str, ...] = ()
    sft_data: Path | None = None
    sft_share: float = 0.2
    mixed_data: dict[str, float] = field(default_factory=dict)
    version: str = "v1"
    num_samples: int = 16
    sampling: SamplingParams = field(default_factory=SamplingParams)
    temperature_from: Path | None = None
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    early_rejection: EarlyRejectionConfig | None = None
    batch_size: int | None = None
    compile: bool = False
    server: ServerConfig | None = None
    adapter: AdapterConfig | None = None
    quantization: Literal["nf4"] | None = None
    finetuning: FinetuningConfig = field(default_factory=lambda: FinetuningConfig(train="last", on_bad_row="skip"))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}: must be at least 1, got {value}")
        if self.pool_top < 0:
            raise InputError(f"pool_top: must be 0 (all) or above, got {self.pool_top}")
        if not 0 <= self.sft_share < 1:
            raise InputError(f"sft_share: must be 0 or above and below 1, got {self.sft_share}")
        for source, share in self.mixed_data.items():
            if not 0 < share < 1:
                raise InputError(f"mixed_data: the share of {source} must lie between 0 and 1, got {share}")
        if self.mixed_data and self.finetuning.train != "last":
            raise InputError(
                "finetuning.train: must be last with mixed_data; Ghost Attention's earlier answers are not to be learnt"
            )
        if self.sampling.temperature == 0 and self.num_samples > 1:
            raise InputError("sampling.temperature: at 0 all answers of a prompt are the same; raise it, e.g. to 1")
        if self.early_rejection is not None:
            if self.server is not None:
                raise InputError("early_rejection: a server gives whole answers only; leave one of the two out")
            if max(self.early_rejection.at) >= (longest := self.sampling.max_new_tokens):
                raise InputError(f"early_rejection.at: must lie below sampling.max_new_tokens, which is {longest}")
        if self.compile and self.server is not None:
            raise InputError("compile: the server decodes as it was started; leave one of the two out")
        if self.quantization is not None and self.adapter is None:
            raise InputError("quantization: 4-bit weights cannot be trained; give an adapter too, e.g. --adapter.r 64")


def main(config: RejectionSamplingConfig) -> None:
    require_new(config.output)
    inputs = inputs_of(config)
    prompts = load_prompts(config.prompts)
    by_id = prompts_by_id(prompts, [load_prompts(source) for source in config.earlier_prompts])
    pool = read_pool(config.pool, top=config.pool_top, new=config.version)
    mixed_in = [(load_conversations(source), share) for source, share in mixed_sources(config).items()]
    params = replace(config.sampling, seed=config.sampling.seed + config.seed)
    if config.temperature_from is not None:
        params = replace(params, temperature=read_best_temperature(config.temperature_from))
    judges = config.helpfulness if config.safety is None else f"{config.helpfulness} & {config.safety}"
    messages = [prompt.messages for prompt in prompts]
    kept = kept_samples(messages, config.num_samples, params, **also_decisive(config, inputs, prompts))

    from rlhf.finetuning.supervised import finetune, training_renderer
    from rlhf.metrics import MetricsLog
    from rlhf.models.policy import load_policy, load_tokenizer, save_policy
    from rlhf.rewards.gate import GatedReward
    from rlhf.sampling.multi_process import sample_distributed
    from rlhf.sampling.policy import policy_sampler
    from rlhf.sampling.room import check_room
    from rlhf.training.accelerator import make_accelerator

    models = {n: inputs[n] for n in ("policy", "helpfulness", "safety") if n in inputs and inputs[n].is_dir()}
    no_room = check_room(prompts, models, params.max_new_tokens, config.too_long)
    accelerator = make_accelerator(seed=config.seed)
    with open_stage(config.output, config, inputs=inputs, keep=kept) as folder:
        accelerator.wait_for_everyone()
        given = {"too_long": config.too_long, "device": accelerator.device}
        reward = GatedReward.load(config.helpfulness, config.safety, config.gate, **given)
        reward.refuse_broken(prompts)

        # sample K answers to each prompt
        sampler = policy_sampler(
            config.policy,
            accelerator.device,
            quantization=config.quantization,
            batch_size=config.batch_size,
            early_rejection=config.early_rejection,
            score_parts=reward.of_parts(prompts),
            compile=config.compile,
            server=config.server,
            too_long=config.too_long,
        )
        shards = folder / kept.name
        samples = sample_distributed(sampler, messages, config.num_samples, params, accelerator, shards=shards)
        drawn = completions_of(prompts, samples, config.version, params.temperature)
        del sampler

        # score them, and those of earlier versions, with the newest reward models
        candidates = [row for row in pool if row.prompt_id in by_id] + drawn
        candidates, scores = rescore(candidates, by_id, reward, accelerator, judges)
        drawn = candidates[-len(drawn) :]
        used_safety = None if scores.safety is None else scores.used_safety[-len(drawn) :]
        gate = reward.gate
        del reward

        # keep the best answer of each prompt
        selection = select(candidates, config.selection)
        dialogues = [by_id[row.prompt_id].answered(row.text) for row in selection.chosen]
        if accelerator.is_main_process:
            write_completions(folder / "completions.parquet", drawn)
            write_selected(folder / "selected.jsonl", selection, dialogues)
            given_up = config.early_rejection.at if config.early_rejection else ()
            figures = selection_figures(drawn, config.num_samples, used_safety, candidates, selection, given_up)
            figures |= {"gate_threshold": gate.threshold} if config.safety else {}
            figures["too_long"] = {"prompts": no_room, "scored_cut": int(scores.too_long.sum())}
            figures |= {"pool": pool_sizes(config.pool), "pool_left_out": len(pool) + len(drawn) - len(candidates)}
            write_json(folder / "selection.json", figures)
        refuse_empty(selection)

        # fine-tune on them
        tokenizer = load_tokenizer(config.fine_tune_from)
        policy = load_policy(config.fine_tune_from, adapter=config.adapter, quantization=config.quantization)
        finetune(
            policy,
            training_renderer(tokenizer, policy, config.finetuning),
            mix_several(dialogues, mixed_in, config.seed, "mixed_data") if mixed_in else dialogues,
            config.finetuning,
            accelerator,
            MetricsLog(folder, accelerator),
            config.seed,
            name=f"rejection sampling {config.version}",
        )
        merge = config.adapter is None or config.adapter.merge
        save_policy(policy, tokenizer, folder / "checkpoint", accelerator, merge=merge)
        accelerator.wait_for_everyone()


def inputs_of(config: RejectionSamplingConfig) -> dict[str, Path]:
    """What the stage reads, by the name of its option; InputError where something is not there, or is no reward."""
    sources = {"prompts": config.prompts} | {f"earlier_prompts.{i}": s for i, s in enumerate(config.earlier_prompts)}
    inputs = {"policy": config.policy, "fine_tune_from": config.fine_tune_from}
    sources |= {f"mixed_data.{number}": source for number, source in enumerate(config.mixed_data)}
    inputs |= {name: Path(source) for name, source in sources.items() if is_local(source)}
    inputs |= {n: p for n in ("pool", "sft_data", "temperature_from") if (p := getattr(config, n)) is not None}
    require_files(**inputs)
    inputs |= config.gate.inputs()
    if config.server is None:
        require_checkpoint(config.policy)
    require_checkpoint(config.fine_tune_from)
    return inputs | reward_files(helpfulness=config.helpfulness, safety=config.safety)


def mixed_sources(config: RejectionSamplingConfig) -> dict[str, float]:
    """File or hub name -> share of all rows, of what is mixed into the fine-tuning."""
    sft = {} if config.sft_data is None else {str(config.sft_data): config.sft_share}
    return sft | config.mixed_data


def also_decisive(config: RejectionSamplingConfig, inputs: Iterable[str], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What else than prompts and parameters decides the drawn answers: with early rejection all that gates a reward."""
    found: dict[str, Any] = {"quantization": config.quantization, "served": config.server and config.server.model}
    found["too_long"] = config.too_long
    if config.early_rejection is not None:
        safety = [number for number, prompt in enumerate(prompts) if prompt.domain == "safety"]
        gate = [config.gate.threshold, config.gate.centre]
        found["early_rejection"] = [asdict(config.early_rejection), config.helpfulness, config.safety, safety, gate]
        decisive = ("policy", "helpfulness", "safety", "gate")
        found["inputs"] = [name for name in inputs if name.split(".")[0] in decisive]
    return found


if __name__ == "__main__":
    run_recipe(main, RejectionSamplingConfig)
