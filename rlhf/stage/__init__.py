"""A stage's whole ritual, owned by one object: door, folder, kept work, closing block. Light: no torch.

    stage = open_stage(config)                    # the output is new, what the config's fields name is there and whole
    ...                                           # read rows, then load torch
    with stage.work(accelerator, kept_states(stage, accelerator)):
        policy = finetune_stage(stage, accelerator, config.policy, rows, config)
        stage.write_json("selection.json", figures)              # the main process writes, the others pass by
        stage.closing.rows(len(rows), left_out)
        stage.closing.suspect(suspicious_selection(figures))

    <output>/            stage.json  metrics.jsonl  checkpoint/ …      only ever a finished stage
    <output>.partial/    the same while it is being written; a kill leaves only this behind
    <output>.suspicious/ the same, whole, that `--strict true` refused to call finished

Recipes open their folder here, by hand and under the driver alike, so that "finished" means the same everywhere.
`fields` says how a config's field types carry their checks, `kept` what of a broken-off attempt the next one takes
over, `closing` what a stage says at its end. Accelerator and work in one: `rlhf.training.work`.
"""

from rlhf.stage.fields import Effect, ExistingPath, InputPath, inputs_of, options_of
from rlhf.stage.files import (
    STAGE_FILE,
    digest,
    package_versions,
    peak_memory_mb,
    remove_folder,
    require_new,
    write_json,
)
from rlhf.stage.kept import ORIGIN_FILE, Kept, require_ours
from rlhf.stage.once import made_once
from rlhf.stage.record import StageRecord, read_stage_file
from rlhf.stage.stage import KeepingConfig, Stage, StageConfig, on_main_process, open_stage

__all__ = [
    "ORIGIN_FILE",
    "STAGE_FILE",
    "Effect",
    "ExistingPath",
    "InputPath",
    "KeepingConfig",
    "Kept",
    "Stage",
    "StageConfig",
    "StageRecord",
    "digest",
    "inputs_of",
    "made_once",
    "on_main_process",
    "open_stage",
    "options_of",
    "package_versions",
    "peak_memory_mb",
    "read_stage_file",
    "remove_folder",
    "require_new",
    "require_ours",
    "write_json",
]
