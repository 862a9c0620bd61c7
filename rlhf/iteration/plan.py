"""From one config to the list of stages: which recipe, with which options, reading what, writing where. Pure.

The list is in an order in which the stages could run one after another; what may run side by side follows from
`inputs`: a stage can start when the folders that its inputs lie in are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.iteration.config import IterativeConfig, VersionConfig

SEED_OPTION = {"simulated_world": "world.seed"}
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run.

    Args:
        name: its folder below the run.
        recipe: name of the recipe, a file `<recipe>.py`.
        config_file: the YAML that the recipe reads.
        overrides: options after it on the command line, without the dashes.
        inputs: paths that must exist before it starts: in another stage's folder, or from outside the run.
        output: the stage's folder.
        processes: how many processes run it.
        links: link -> file, made before it starts.
    """

    name: str
    recipe: str
    config_file: Path
    overrides: Mapping[str, str]
    inputs: tuple[Path, ...]
    output: Path
    processes: int = 1
    links: tuple[tuple[Path, Path], ...] = ()

    @property
    def arguments(self) -> list[str]:
        """What follows the recipe on the command line."""
        given = [part for name, value in self.overrides.items() for part in (f"--{name}", value)]
        return ["--config", str(self.config_file), *given]


def maker_of(path: Path, stages: Iterable[PlannedStage]) -> PlannedStage | None:
    """The stage in whose folder `path` lies; None: it comes from outside."""
    return next((stage for stage in stages if stage.output == path or stage.output in path.parents), None)


def dependencies(stages: Sequence[PlannedStage]) -> dict[str, tuple[str, ...]]:
    """Stage name -> names of the stages that make its inputs."""
    makers = {stage.name: [maker_of(path, stages) for path in stage.inputs] for stage in stages}
    return {name: tuple(dict.fromkeys(m.name for m in found if m is not None)) for name, found in makers.items()}


def dependents_depth(stages: Sequence[PlannedStage]) -> dict[str, int]:
    """Stage name -> length of the longest chain of stages that wait for it: the higher, the sooner it should run."""
    needs = dependencies(stages)
    depth = dict.fromkeys(needs, 0)
    for stage in reversed(stages):
        for name in needs[stage.name]:
            depth[name] = max(depth[name], depth[stage.name] + 1)
    return depth


def make_plan(config: IterativeConfig) -> list[PlannedStage]:
    """All stages of a run, each after those it reads from.

    data, base, sft (and referee_reward), then for each version preferences, both reward models, rejection sampling (at
    the temperature of a sweep before it where asked for), PPO and Ghost Attention where asked for, and the evaluation
    of what came out, against SFT. Version n's preferences compare the newest policy with the one before; the
    preferences of all versions so far train its reward models, which start from the SFT checkpoint. SFT itself is
    scored by the first version's reward models.
    """
    return _Planner(config).plan()


class _Planner:
    """Collects the stages of one config; remembers the newest policy and what earlier versions made."""

    def __init__(self, config: IterativeConfig) -> None:
        self.config = config
        self.run = config.run
        self.data = config.run / "data"
        self.sft = config.run / "sft" / "checkpoint"
        self.stages: list[PlannedStage] = []
        self.policies = [self.sft]
        self.preferences: list[Path] = []
        self.test_preferences: list[Path] = []
        self.completions: list[tuple[str, Path]] = []
        self.rewards: dict[str, Path] = {}

    def plan(self) -> list[PlannedStage]:
        self._beginning()
        for number, version in enumerate(self.config.versions, start=1):
            self._version(version, self.config.seed + 1000 * number, first=number == 1)
        return self.stages

    def _add(
        self,
        name: str,
        recipe: str,
        seed: int,
        links: tuple[tuple[Path, Path], ...] = (),
        /,
        **options: str | Path | Sequence[Path] | None,
    ) -> Path:
        """Plan a stage, return its folder. Options that are paths are its inputs; None and empty ones are left out."""
        output = self.run / name
        overrides = {"output": str(output)}
        inputs = [target for _, target in links]
        for option, value in options.items():
            if isinstance(value, str):
                overrides[option] = value
            elif isinstance(value, Path):
                overrides[option] = str(value)
                inputs.append(value)
            elif value:
                overrides[option] = json.dumps([str(path) for path in value])
                inputs.extend(value)
        overrides[SEED_OPTION.get(recipe, "seed")] = str(seed)
        stage = PlannedStage(
            name=name,
            recipe=recipe,
            config_file=self.config.configs / f"{recipe}.yaml",
            overrides=overrides,
            inputs=tuple(dict.fromkeys(inputs)),
            output=output,
            processes=self.config.processes.get(recipe, 1),
            links=links,
        )
        self.stages.append(stage)
        return output

    def _beginning(self) -> None:
        config, data = self.config, self.data
        self._add("data", config.data_recipe, config.seed, data=config.data)
        base = self._add("base", "pretrain", config.seed, data=data / "pretrain.jsonl")
        self._add("sft", "sft", config.seed, policy=base / "checkpoint", data=data / "sft.jsonl")
        if config.referee:
            self.rewards["referee"] = self._reward_model(
                "referee_reward",
                "helpfulness",
                config.seed,
                [data / "referee_train.jsonl"],
                [data / "referee_test.jsonl"],
                mixed=False,
            )

    def _reward_model(
        self, name: str, domain: str, seed: int, preferences: Sequence[Path], test: Sequence[Path], mixed: bool = True
    ) -> Path:
        """Plan a reward model on its domain's rows, mixed with the other domain's or not; returns its checkpoint."""
        folder = self._add(
            name,
            f"{domain}_reward",
            seed,
            policy=self.sft,
            preferences=preferences,
            other_preferences=preferences if mixed else None,
            other_share=None if mixed else "0.0",
            test_preferences=test,
        )
        return folder / "checkpoint"

    def _version(self, version: VersionConfig, seed: int, *, first: bool) -> None:
        name, data, newest = version.name, self.data, self.policies[-1]
        if self.config.collect or first:
            self._preferences_and_rewards(name, seed)
        helpfulness, safety = self.rewards["helpfulness"], self.rewards["safety"]
        if first:
            self._evaluation("sft_evaluation", "sft", self.sft)
        links = tuple((self.run / name / "pool" / f"{earlier}.parquet", path) for earlier, path in self.completions)
        folder = self._add(
            f"{name}/rejection_sampling",
            "rejection_sampling",
            seed,
            links,
            policy=newest,
            fine_tune_from=newest if self.config.fine_tune_from == "newest" else self.sft,
            prompts=data / "prompts.jsonl",
            helpfulness=helpfulness,
            safety=safety,
            pool=str(self.run / name / "pool") if links else None,
            version=name,
            temperature_from=self._sweep(name, seed) if self.config.sweep else None,
        )
        if self.config.pool == "all":
            self.completions.append((name, folder / "completions.parquet"))
        self.policies.append(folder / "checkpoint")
        self._evaluation(f"{name}/evaluation", name, self.policies[-1])
        if version.ppo:
            folder = self._add(
                f"{name}/ppo",
                "ppo",
                seed,
                policy=self.policies[-1],
                helpfulness=helpfulness,
                safety=safety,
                prompts=data / "prompts.jsonl",
                validation_prompts=data / "validation_prompts.jsonl",
            )
            self.policies[-1] = folder / "checkpoint"
            self._evaluation(f"{name}/ppo_evaluation", f"{name}_ppo", self.policies[-1])
        if version.ghost_attention:
            folder = self._add(
                f"{name}/ghost_attention",
                "ghost_attention",
                seed,
                policy=self.policies[-1],
                dialogues=data / "sft.jsonl",
                sft_data=data / "sft.jsonl",
            )
            self.policies[-1] = folder / "checkpoint"
            self._evaluation(f"{name}/ghost_attention_evaluation", f"{name}_gatt", self.policies[-1])

    def _sweep(self, name: str, seed: int) -> Path:
        """Plan the search for the temperature at which the newest policy is sampled; returns its figures."""
        folder = self._add(
            f"{name}/temperature_sweep",
            "temperature_sweep",
            seed,
            policy=self.policies[-1],
            prompts=self.data / "prompts.jsonl",
            helpfulness=self.rewards["helpfulness"],
            safety=self.rewards["safety"],
        )
        return folder / "sweep.json"

    def _preferences_and_rewards(self, name: str, seed: int) -> None:
        if self.config.collect:
            folder = self._add(
                f"{name}/preferences",
                "collect_preferences",
                seed,
                policy=self.policies[-1],
                second_policy=self.policies[-2] if len(self.policies) > 1 else None,
                prompts=self.data / "prompts.jsonl",
                test_prompts=self.data / "test_prompts.jsonl",
                world=self.data / "world.json",
                labels=str(self.run / "labels.sqlite"),
                helpfulness=self.rewards.get("helpfulness"),
                safety=self.rewards.get("safety"),
            )
        else:
            folder = self.data
        self.preferences.append(folder / "preferences_train.jsonl")
        self.test_preferences.append(folder / "preferences_test.jsonl")
        for domain in ("helpfulness", "safety"):
            self.rewards[domain] = self._reward_model(
                f"{name}/{domain}_reward", domain, seed, self.preferences, self.test_preferences
            )

    def _evaluation(self, stage: str, name: str, policy: Path) -> None:
        """Plan the measurement of one policy, by the newest reward models, against the SFT model's answers."""
        against_sft = policy != self.sft
        self._add(
            stage,
            "evaluate",
            self.config.seed,
            name=name,
            policy=policy,
            baseline=self.sft if against_sft else None,
            baseline_evaluation=self.run / "sft_evaluation" if against_sft else None,
            prompts=self.data / "test_prompts.jsonl",
            helpfulness=self.rewards["helpfulness"],
            safety=self.rewards["safety"],
            referee=self.rewards.get("referee"),
            world=self.data / "world.json" if self.config.collect else None,
        )
