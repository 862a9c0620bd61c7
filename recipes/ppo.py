"""PPO against two reward models (Llama 2 paper, section 3.2.3).

The policy answers prompts; a helpfulness and a safety reward model judge; the safety score counts where the prompt is
tagged safety or the answer scores below the gate's threshold, the helpfulness score elsewhere. The whitened score, less
beta times the KL to the starting policy, is what PPO maximises. Every few iterations held-out prompts decide which
checkpoint is kept, and when to stop.

    accelerate launch recipes/ppo.py --config recipes/configs/embedded/ppo.yaml
    accelerate launch --config_file ds_configs/accelerate_zero3.yaml recipes/ppo.py --config my_ppo.yaml

Writes into the output folder: checkpoint/ (the best by held-out reward), metrics.jsonl (a line an iteration),
samples.jsonl (some held-out answers at each evaluation), ppo.json (why it stopped, which iteration was best). After a
kill the same command goes on from the last state, and ends where it would have ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.configuration import run_recipe
from rlhf.conversation import Renderer
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_prompts
from rlhf.errors import InputError
from rlhf.metrics import read_metrics
from rlhf.models.adapters import saved_quantization
from rlhf.models.checkpoint.context import Context
from rlhf.models.checkpoint.folder import is_adapter_checkpoint
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_tokenizer
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import PPOResult, train_ppo
from rlhf.ppo.planning.hardware import Hardware
from rlhf.ppo.policy import TrainedByPPO
from rlhf.ppo.saving import SAMPLES_FILE, Saving
from rlhf.ppo.watch import PPOFigures, suspicious_run
from rlhf.rewards.gate import GatedReward, read_gate
from rlhf.rewards.gated_config import GatedConfig
from rlhf.rewards.loading import load_reward
from rlhf.rewards.specs import Reward, is_ensemble, is_import_path, read_ensemble
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import prompts_of_at_most, with_room
from rlhf.stage import InputPath, KeepingConfig, Stage, on_main_process, open_stage
from rlhf.training.accelerator import frozen_dtype
from rlhf.training.kept import RESUME
from rlhf.training.work import training_work

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rlhf.ppo.algorithm import PPO


@dataclass(frozen=True, kw_only=True)
class PPORecipeConfig(KeepingConfig, GatedConfig):
    """PPO.

    Args:
        policy: whom it trains, the checkpoint to start from, and who draws its answers (docs/policies.md).
        prompts: prompts to train on (file or hub name); those of domain "safety" are rewarded for safety alone.
        validation_prompts: held-out prompts for the early stop.
        referee: a reward of the same kinds that scores the held-out answers and trains nothing: the policy pleases the
            two reward models alone where their scores rise and the referee's fall.
        value_from: reward-model folder that the value model starts from, with the policy's tokenizer. Default:
            helpfulness, or an ensemble's first folder, where the value can start from it (whole weights, the policy's
            tokenizer); else the policy with a fresh head, which is said.
        roles: separate: a model for each role, policy and value trained whole. shared: all are adapters and heads on
            one frozen base; policy, helpfulness and safety are adapters over the same weights, or policy is the base.
        adapter: with shared roles, the size of new adapters; saved ones keep theirs. null: its defaults.
        quantization: with shared roles, nf4 holds the base in 4 bit; null: as it is.
        dtype: with shared roles, of the base's weights that are not in 4 bit; null: that of the mixed precision, which
            is bfloat16 on a GPU that computes in it, else float32.
        max_prompt_tokens: leave out longer prompts; how many is said.
        seed: of the prompts' order, the minibatches and (added to sampling.seed) the draws.
        ppo: settings of PPO.
        sampling: length and temperature of the answers, held-out ones too; the policy is its distribution at that
            temperature, everywhere. PPO needs all else that shapes the draws left at its default.
        dry_run: print what the run takes of this hardware, by role and phase, and stop; reads the checkpoints' configs
            alone, no weights.
    """

    policy: TrainedByPPO
    prompts: DataSource
    validation_prompts: DataSource
    referee: Reward | None = None
    value_from: InputPath | None = None
    roles: Literal["separate", "shared"] = "separate"
    adapter: AdapterConfig | None = None
    quantization: Literal["nf4"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_prompt_tokens: int | None = None
    seed: int = 0
    ppo: PPOConfig = field(default_factory=PPOConfig)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    dry_run: Hardware | None = None

    def __post_init__(self) -> None:
        self.gate.require_safety(self.safety)
        if self.sampling.temperature == 0:
            raise InputError(
                "sampling.temperature: must be above 0 for PPO, got 0; a greedy policy tries nothing, e.g. take 0.7"
            )
        for name, needed in (("top_p", 1.0), ("top_k", 0), ("repetition_penalty", 1.0)):
            if getattr(self.sampling, name) != needed:
                raise InputError(
                    f"sampling.{name}: must be {needed:g} for PPO, got {getattr(self.sampling, name):g}: the ratio "
                    "would not be the policy's, which cuts off and penalises no token; lower sampling.temperature"
                )
        if self.sampling.stop:
            raise InputError("sampling.stop: must be empty for PPO, whose answers end with the end token")
        defaults = {"adapter": None, "quantization": None, "dtype": None}
        for name in (n for n, value in defaults.items() if getattr(self, n) != value and self.roles == "separate"):
            raise InputError(f"{name}: is for adapters on one base; add --roles shared, or leave it out")
        if (engine := self.policy.engine) is not None:
            if self.quantization is not None:
                raise InputError(
                    f"policy.engine: {engine.name} cannot lay an adapter over a base in 4 bit; leave the engine or "
                    "quantization out"
                )
            if "max_model_len" in engine.options:
                raise InputError(
                    "policy.engine.options: max_model_len would cut prompts that are trained on whole; leave it out, "
                    "or take --max_prompt_tokens"
                )
        if self.value_from is not None and not self.ppo.learns_value:
            raise InputError(f"value_from: {self.ppo.estimator} learns no value; leave it out, or set estimator to gae")


def main(config: PPORecipeConfig) -> None:
    if config.dry_run is not None:
        print(planned(config, config.dry_run))
        return
    stage = open_stage(config)
    asked = {name: load_prompts(getattr(config, name)) for name in ("prompts", "validation_prompts")}
    tokenizer = load_tokenizer(config.policy.checkpoint)
    value_from = value_start(config, stage.inputs, tokenizer)
    readers = {"policy": config.policy.checkpoint, **({"value_from": value_from} if value_from else {})}
    renderer = Context.of_checkpoint(*readers.values()).prompt_renderer(
        tokenizer, config.sampling.max_new_tokens, config.too_long
    )
    no_room: Counter[str] = Counter()
    fitting = {}
    for name, prompts in asked.items():
        short = prompts_of_at_most(name, getattr(config, name), prompts, renderer, config.max_prompt_tokens)
        fitting[name], over = with_room(short, stage.inputs | readers, config.sampling.max_new_tokens, config.too_long)
        no_room.update(over)

    with (
        training_work(stage, beside=(SAMPLES_FILE,)) as accelerator,
        closing(ready_to_train(config, tokenizer, renderer, value_from, accelerator, stage.folder)) as ppo,
    ):
        save_policy = partial(ppo.roles.save_policy, tokenizer=tokenizer)
        saving = Saving(stage.folder, ppo.stepper, accelerator, save_policy, keep=config.ppo.keep_checkpoints)
        result = train_ppo(ppo, fitting["prompts"], fitting["validation_prompts"], stage.log, saving)
        saving.take_best(result.best_iteration)
        left_out = len(asked["prompts"]) - len(fitting["prompts"])
        record_run(stage, result, no_room, len(fitting["prompts"]), left_out, ppo.environment.reward)


def ready_to_train(
    config: PPORecipeConfig,
    tokenizer: Any,
    renderer: Renderer,
    value_from: Path | None,
    accelerator: Accelerator,
    folder: Path,
) -> PPO:
    """Policy, value, reference and judges, loaded, and the engine, if one draws; `folder`: the stage's."""
    from rlhf.ppo.algorithm import PPO
    from rlhf.ppo.drawing import DrawingEngine
    from rlhf.ppo.setup import load_roles

    engine = None
    if config.policy.engine is not None:
        place = folder / RESUME / "engine"
        engine = DrawingEngine(
            config.policy, config.ppo, place, accelerator, renderer, dtype=config.dtype, too_long=config.too_long
        )

    roles = load_roles(
        config.policy.checkpoint,
        config.helpfulness,
        config.safety,
        value_from,
        accelerator,
        shared=config.roles == "shared",
        with_value=config.ppo.learns_value,
        adapter=config.adapter,
        quantization=config.quantization,
        dtype=config.dtype or frozen_dtype(accelerator.device),
        seed=config.seed,
    )
    return PPO(
        roles,
        renderer,
        config.ppo,
        config.sampling.seeded(config.seed),
        accelerator,
        seed=config.seed,
        gate=read_gate(config.gate, config.helpfulness, config.safety),
        too_long=config.too_long,
        referee=None if config.referee is None else load_reward(config.referee, accelerator=accelerator),
        engine=engine,
    )


def value_start(config: PPORecipeConfig, inputs: Mapping[str, Path], tokenizer: Any) -> Path | None:
    """The folder that the value model starts from; None: it is the policy with a fresh head, or shared roles choose."""
    from rlhf.ppo.setup import default_value

    if config.value_from is not None or not config.ppo.learns_value or config.roles == "shared":
        return config.value_from
    helpful = [path for name, path in inputs.items() if name.startswith("helpfulness") and path.is_dir()]
    return default_value(helpful, tokenizer)


@on_main_process
def record_run(
    stage: Stage, result: PPOResult, no_room: Mapping[str, int], used: int, left_out: int, reward: GatedReward
) -> None:
    """Write ppo.json; the closing block says how it went.

    Args:
        no_room: prompts that leave too little, by the model whose context it is.
        used, left_out: prompts that were trained on, and that are too long.
        reward: what was maximised.
    """
    figures: PPOFigures = {
        "iterations": result.iterations,
        "stopped": result.stopped,
        "best_iteration": result.best_iteration,
        "best_reward": result.best_reward,
        "first_reward": result.first_reward,
        "too_long": {"prompts": dict(no_room)},
    }
    stage.write_json("ppo.json", figures)
    stage.closing.rows(used, {"too long a prompt": left_out})
    stage.closing.figures(**vars(result))
    stage.closing.suspect(suspicious_run(result.best_iteration, read_metrics(stage.log.path)))
    stage.closing.suspect(reward.suspicious())


def planned(config: PPORecipeConfig, hardware: Hardware) -> str:
    """The plan of this run as text. What is not trained yet is taken to be of the policy's size."""
    if not config.policy.checkpoint.exists():
        raise InputError(
            f"policy: {config.policy.checkpoint} does not exist; a dry run takes any checkpoint of its size, as its "
            "base: --policy.checkpoint FOLDER"
        )
    judges, referee = planned_judges(config, "helpfulness", "safety"), planned_judges(config, "referee")

    from rlhf.ppo.planning.models import Setting
    from rlhf.ppo.planning.report import report

    quantization = config.quantization
    if config.roles == "shared" and is_adapter_checkpoint(config.policy.checkpoint):
        quantization = saved_quantization(config.policy.checkpoint, quantization)
    if quantization is not None and hardware.zero_stage == 3:
        raise InputError("dry_run.zero_stage: 3 cannot partition weights in 4 bit; use 0, or leave quantization out")
    helpful = next((path for name, path in judges.items() if name.startswith("helpfulness")), None)
    setting = Setting(
        policy=config.policy.checkpoint,
        engine=config.policy.engine,
        judges=judges,
        referee=referee,
        ppo=config.ppo,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        value=helpful if config.value_from is None else planned_folder(config.value_from),
        shared=config.roles == "shared",
        adapter=config.adapter,
        quantization=quantization,
        dtype=config.dtype or ("bfloat16" if hardware.mixed_precision == "bf16" else "float32"),
    )
    missing = [name for name, folder in (judges | referee).items() if folder is None]
    note = f"\nNot there yet, and taken to be of the policy's size: {', '.join(missing)}." if missing else ""
    return report(setting, hardware) + note


def planned_judges(config: PPORecipeConfig, *roles: str) -> dict[str, Path | None]:
    """Name -> folder of the reward models of these roles, an ensemble's by their numbers; see `planned_folder`."""
    found: dict[str, Path | None] = {}
    for role in (name for name in roles if getattr(config, name) is not None):
        specs = {role: getattr(config, role)}
        if is_ensemble(specs[role]):
            specs = {f"{role}.{number}": m for number, m in enumerate(read_ensemble(specs[role]).members)}
        found |= {name: planned_folder(spec) for name, spec in specs.items() if not is_import_path(spec)}
    return found


def planned_folder(folder: str | Path) -> Path | None:
    """The folder, or None where it does not exist yet."""
    return Path(folder) if Path(folder).is_dir() else None


if __name__ == "__main__":
    run_recipe(main, PPORecipeConfig)
