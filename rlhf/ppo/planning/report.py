"""A plan in words: what each role and phase takes, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlhf.ppo.planning.hardware import Hardware
from rlhf.ppo.planning.models import Setting
from rlhf.ppo.planning.plan import GIB, Plan, make_plan


def report(setting: Setting, hardware: Hardware) -> str:
    """The plan as a table and, where it does not fit, the changes that make it fit, one after another."""
    plan = make_plan(setting, hardware)
    lines = [*_tables(plan, hardware), ""]
    if _fits(plan, hardware):
        return "\n".join([*lines, "It fits."])
    lines.append(f"It does NOT fit: {plan.peak / GIB:.2f} of {hardware.memory_gib:g} GiB. Each with those before it:")
    for option, tried in ways_to_fit(setting, hardware):
        lines.append(f"  {option:<52} {tried.peak / GIB:8.2f} GiB{', fits' if _fits(tried, hardware) else ''}")
    return "\n".join(lines)


def ways_to_fit(setting: Setting, hardware: Hardware) -> Iterator[tuple[str, Plan]]:
    """Changes that take less memory, the cheapest first, each on top of the earlier ones, until one fits."""
    for option, changed, on in _changes(setting, hardware):
        plan = make_plan(changed, on)
        yield option, plan
        if _fits(plan, on):
            return


def _changes(setting: Setting, hardware: Hardware) -> Iterator[tuple[str, Setting, Hardware]]:
    optimizer = setting.ppo.optimizer
    if setting.ppo.rows > 16:
        setting = replace(setting, ppo=replace(setting.ppo, rows=16))
        yield "--ppo.rows 16", setting, hardware
    if not optimizer.gradient_checkpointing:
        optimizer = replace(optimizer, gradient_checkpointing=True)
        setting = replace(setting, ppo=replace(setting.ppo, optimizer=optimizer))
        yield "--ppo.optimizer.gradient_checkpointing true", setting, hardware
    if optimizer.micro_batch_size > 1:
        optimizer = replace(optimizer, micro_batch_size=1)
        setting = replace(setting, ppo=replace(setting.ppo, optimizer=optimizer))
        yield "--ppo.optimizer.micro_batch_size 1", setting, hardware
    if not setting.shared and hardware.devices > 1 and hardware.zero_stage < 3:
        hardware = replace(hardware, zero_stage=3)
        yield "--config_file ds_configs/accelerate_zero3.yaml", setting, hardware
    if not setting.shared and hardware.devices > 1 and not hardware.offload:
        hardware = replace(hardware, offload=True)
        yield "--config_file ds_configs/accelerate_zero3_offload.yaml", setting, hardware
    if not setting.shared:
        hardware = replace(hardware, zero_stage=0, offload=False)
        setting = replace(setting, shared=True)
        yield "--roles shared", setting, hardware
    if setting.dtype == "float32" and setting.quantization is None:
        setting = replace(setting, dtype="bfloat16")
        yield "--dtype bfloat16", setting, hardware
    if setting.engine is not None:
        setting = replace(setting, engine=None)
        yield "without --policy.engine", setting, hardware
    if setting.quantization is None:
        option = "--quantization nf4"
        if hardware.zero_stage == 3:  # which cannot partition weights in 4 bit
            hardware = replace(hardware, zero_stage=0, offload=False)
            option += ", plain data parallel"
        yield option, replace(setting, quantization="nf4"), hardware


def _fits(plan: Plan, hardware: Hardware) -> bool:
    return plan.peak <= hardware.memory_gib * GIB


def _tables(plan: Plan, hardware: Hardware) -> Iterator[str]:
    yield f"{'held on each device, GiB':<48}{'weights':>10}{'optimizer':>11}"
    for role, parts in plan.held.items():
        yield f"  {role:<46}{parts['weights'] / GIB:10.2f}{parts.get('optimizer', 0.0) / GIB:11.2f}"
    yield ""
    yield f"{'an iteration':<16}{'GiB':>8}{'with all held':>16}{'of ' + f'{hardware.memory_gib:g}':>10}{'seconds':>10}"
    for phase, size in plan.phases.items():
        total = plan.constant + size
        share = total / GIB / hardware.memory_gib
        yield f"  {phase:<14}{size / GIB:8.2f}{total / GIB:16.2f}{share:10.0%}{plan.seconds[phase]:10.1f}"
    written, read = plan.tokens["written"], plan.tokens["read"]
    whole = sum(plan.seconds.values())
    yield f"  {written:,} tokens written, {read:,} trained on: {whole:.0f} seconds on {hardware.devices} devices"
