"""Which temperature to sample at next, from K answers per prompt at each of several (Llama 2 paper, section 3.2.3).

The best temperature rises with the versions (figure 8), so the paper tunes it anew in every round. One draw of K gives
the expected best and median of k answers for every k up to K (figure 7), and how alike a prompt's answers are
(Self-BLEU, section 5.1, figure 21). Departs from the paper in saying how sure the choice is: an interval over prompts.

    python recipes/studies/temperature_sweep.py --config recipes/configs/embedded/temperature_sweep.yaml

Writes into the output folder: sweep.json (the figures; `--temperature_from` of rejection_sampling.py reads it),
completions.parquet (all answers with their scores), index.html (the figures, to look at).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlhf.configuration import run_recipe
from rlhf.data.fields import DataSource
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Completion
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.rejection.pool import completions_of, rescore, write_completions
from rlhf.rejection.temperature import Sweep, sweep_figures
from rlhf.report.pages.temperature import build_sweep_page, text_table
from rlhf.rewards.gated_config import GatedConfig
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.opening import open_sampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.room import with_room
from rlhf.sampling.source import TokenizedPolicy
from rlhf.stage import Stage, on_main_process, open_stage
from rlhf.training.work import launched_work


@dataclass(frozen=True, kw_only=True)
class TemperatureSweepConfig(GatedConfig):
    """A sweep over temperatures.

    Args:
        policy: whose answers are sampled, the newest (docs/policies.md).
        prompts: prompts to answer (file or hub name).
        temperatures: to draw at, two or more; the same random numbers decide the draws at each.
        num_prompts: this many prompts, drawn with the seed; 0: all of them.
        num_samples: K, answers drawn for each prompt at each temperature.
        best_of: k of the next round of rejection sampling, at most K: the best temperature is the one for it.
        groups: name -> sources of the prompts whose Self-BLEU is shown as one line.
        sampling: how answers are drawn; its temperature is not used.
        seed: added to sampling.seed; also of the drawn prompts.
    """

    policy: TokenizedPolicy
    prompts: DataSource
    temperatures: tuple[float, ...] = (0.6, 0.8, 1.0, 1.2, 1.4)
    num_prompts: int = 100
    num_samples: int = 25
    best_of: int = 16
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0

    def __post_init__(self) -> None:
        self.gate.require_safety(self.safety)
        if len(set(self.temperatures)) < 2 or len(set(self.temperatures)) < len(self.temperatures):
            raise InputError(f"temperatures: name two or more, each once, got {list(self.temperatures)}")
        if min(self.temperatures) <= 0:
            raise InputError(f"temperatures: must be above 0, got {min(self.temperatures)}")
        if self.num_samples < 2:
            raise InputError(f"num_samples: must be at least 2, got {self.num_samples}")
        if not 1 <= self.best_of <= self.num_samples:
            raise InputError(f"best_of: must lie between 1 and num_samples ({self.num_samples}), got {self.best_of}")
        if self.num_prompts < 0:
            raise InputError(f"num_prompts: must be 0 (all) or above, got {self.num_prompts}")


def main(config: TemperatureSweepConfig) -> None:
    stage = open_stage(config)
    prompts = load_prompts(config.prompts)
    if 0 < config.num_prompts < len(prompts):
        prompts = random.Random(config.seed).sample(prompts, config.num_prompts)
    by_id = {prompt.id: prompt for prompt in prompts}
    unknown = {s for sources in config.groups.values() for s in sources} - {prompt.source for prompt in prompts}
    if unknown:
        raise InputError(f"groups: no drawn prompt has the source {min(unknown)!r}; raise num_prompts or leave it out")

    asked = len(prompts)
    prompts, no_room = with_room(prompts, stage.inputs, config.sampling.max_new_tokens, config.too_long)
    with launched_work(stage) as accelerator:
        reward = config.load_rewards(accelerator)
        reward.refuse_broken(prompts)
        sampler = open_sampler(config.policy, accelerator.device, too_long=config.too_long)

        drawn: dict[float, list[Completion]] = {}
        scored_cut = 0
        for temperature in config.temperatures:
            params = replace(config.sampling.seeded(config.seed), temperature=temperature)
            samples = sample_distributed(
                sampler, [prompt.messages for prompt in prompts], config.num_samples, params, accelerator
            )
            rows = completions_of(prompts, samples, "sweep", temperature)
            drawn[temperature], scores = rescore(rows, by_id, reward, accelerator, config.reward_name)
            scored_cut += int(scores.too_long.sum())

        sweep: Sweep = {
            **sweep_figures(drawn, prompts, config.num_samples, config.best_of, config.groups),
            "too_long": {"prompts": no_room, "scored_cut": scored_cut},
        }
        record_sweep(stage, config, drawn, sweep)
        stage.closing.rows(sum(map(len, drawn.values())), {"too long a prompt": asked - len(prompts)})
        ended = [row.finished for rows in drawn.values() for row in rows]
        stage.closing.suspect([*suspicious_ends(ended), *reward.suspicious()])


@on_main_process
def record_sweep(
    stage: Stage, config: TemperatureSweepConfig, drawn: Mapping[float, Sequence[Completion]], sweep: Sweep
) -> None:
    """Write answers, figures and the page, and show the table."""
    write_completions(stage.folder / "completions.parquet", [row for rows in drawn.values() for row in rows])
    stage.write_json("sweep.json", sweep, shown=text_table(sweep))
    build_sweep_page(sweep, stage.folder / "index.html", config.output.name)


if __name__ == "__main__":
    run_recipe(main, TemperatureSweepConfig)
