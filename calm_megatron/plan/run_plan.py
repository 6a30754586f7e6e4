"""What a run would need and take on so many GPUs, as text."""

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, EnergyHeadConfig, RunConfig
from calm_megatron.plan.counts import calm_parameters
from calm_megatron.plan.devices import DEVICES, Device, device
from calm_megatron.plan.layers import layer_costs
from calm_megatron.plan.layouts import Layout, layout_of, ranked
from calm_megatron.plan.pace import Assumptions, Pace
from calm_megatron.plan.report import short, table
from calm_megatron.plan.traffic import step_traffic

_SHOWN = 8
"""Layouts of the ranked list."""
_GB = 1e9


def known_device(name: str) -> Device:
    """The device of a short name.

    Raises:
        UserError: it is not in the table.
    """
    found = device(name)
    if found is None:
        known = ", ".join(each.name for each in DEVICES)
        raise UserError(f"nothing is known of a GPU '{name}'", "--gpu", f"known are {known} (plan/devices.py)")
    return found


def run_plan_text(
    config: RunConfig,
    gpus: int,
    gpu: Device,
    autoencoder: AutoencoderConfig | None = None,
    assumed: Assumptions | None = None,
) -> str:
    """Parameters, FLOPs, memory by kind, traffic, time, and other layouts.

    Raises:
        UserError: the run trains no CALM with an energy head, or neither its layout nor another divides.
    """
    model, assumed = config.model, assumed or Assumptions()
    if not isinstance(model, CalmConfig) or not isinstance(model.head, EnergyHeadConfig):
        raise UserError(
            "memory and pace are known for CALM with an energy head alone", "the config", "plan --stages works for all"
        )
    others = ranked(config, gpus, gpu, assumed, autoencoder)
    parts = [_parts(config, model, autoencoder)]
    try:
        layout = layout_of(config, gpus, gpu, assumed, autoencoder)
    except ValueError:
        what = f"tensor ranks x stages do not divide {gpus} GPUs, or micro-batches x data ranks the global batch"
        if not others:
            raise UserError(what, "the layout", "take another number of GPUs, or train.global_batch_size") from None
        layout = others[0]
        parts.append(f"{what}: this is the quickest layout that fits, the first of those at the end")
    parts += [
        _memory(layout, gpu),
        _traffic(layout, autoencoder),
        _pace(layout.pace, layout.config, gpus, gpu, assumed),
        _others(others),
    ]
    return "\n\n".join(parts)


def _parts(config: RunConfig, model: CalmConfig, autoencoder: AutoencoderConfig | None) -> str:
    parameters = calm_parameters(model)
    flops = dict.fromkeys(parameters, 0)
    for cost in layer_costs(config, autoencoder):
        part = (
            "head" if cost.name.startswith("head.")
            else "compression" if cost.name == "patch_embedding"
            else "backbone"
        )  # fmt: skip
        flops[part] += cost.step_flops
    total = sum(flops.values())
    rows = [("", "parameters", "FLOPs a sequence", "share")]
    rows += [(name, f"{parameters[name]:,}", short(flops[name]), f"{flops[name] / total:.1%}") for name in parameters]
    rows.append(("all", f"{sum(parameters.values()):,}", short(total), ""))
    left_out = "" if autoencoder else "; the frozen encoder's are left out, name it with --autoencoder"
    return "\n".join([f"parameters, and FLOPs of forward and backward pass{left_out}", *table(rows, left=0)])


def _memory(layout: Layout, gpu: Device) -> str:
    kinds = ("weights", "master weights", "moments", "gradients", "buckets", "activations", "again", "head samples")
    rows: list[tuple[str, ...]] = [("stage", *kinds, "targets", "all")]
    for number, stage in enumerate(layout.memory):
        state, work = stage.state, stage.work
        sizes = (
            state.weights, state.master_weights, state.moments, state.gradients, state.bucket,
            work.activations, work.recomputed, work.samples, work.targets, stage.total,
        )  # fmt: skip
        rows.append((str(number), *(f"{size / _GB:.2f}" for size in sizes)))
    verdict = "fits" if layout.fits(gpu) else "does not fit"
    title = f"GB on a rank at the peak, by stage; {verdict} into 90 % of the {gpu.memory_gb:g} GB of one {gpu.name}"
    return "\n".join([title, *table(rows, left=0)])


def _traffic(layout: Layout, autoencoder: AutoencoderConfig | None) -> str:
    rows = [("stage", "among", "what", "by", "GB a step")]
    for stage in range(len(layout.memory)):
        sent = step_traffic(layout.config, layout.data_ranks, stage, autoencoder)
        rows += [
            (str(stage), kind.among, kind.purpose, kind.collective, f"{size / _GB:.3f}") for kind, size in sent.items()
        ]
    return "\n".join(["what a rank sends", *table(rows, left=2)]) if len(rows) > 1 else "a rank sends nothing"


def _pace(found: Pace | None, config: RunConfig, gpus: int, gpu: Device, assumed: Assumptions) -> str:
    if found is None:
        return f"time: unknown, as the peak of one {gpu.name} in {config.train.precision} is ({gpu.source})"
    tokens = config.train.global_batch_size * config.data.seq_length
    lines = [
        f"time on {gpus} x {gpu.name}, an estimate",
        f"  step {found.step_seconds:.3f} s, {tokens / found.step_seconds:,.0f} tokens/s, MFU {found.mfu:.1%}, stages "
        f"wait for {found.bubble:.1%}",
        f"  {config.train.train_iters:,} steps, {tokens * config.train.train_iters / 1e9:,.0f}G tokens: "
        f"{found.hours:,.1f} hours, {found.gpu_hours:,.0f} GPU-hours",
        f"  assumed: {assumed}",
        f"  peak: {gpu.flops[config.train.precision] / 1e12:g} TFLOP/s, {gpu.source}",
    ]
    return "\n".join(lines)


def _others(found: list[Layout]) -> str:
    if not found:
        return "no layout of powers of two fits"
    rows = [("tensor", "pipeline", "data", "ZeRO", "micro-batch", "recompute", "GB", "step s", "MFU")]
    for layout in found[:_SHOWN]:
        parallel, train = layout.config.parallel, layout.config.train
        assert layout.pace is not None
        rows.append(
            (
                str(parallel.tensor_model_parallel_size), str(parallel.pipeline_model_parallel_size),
                str(layout.data_ranks), str(parallel.zero_stage), str(train.micro_batch_size),
                train.recompute_granularity, f"{layout.peak_bytes / _GB:.1f}", f"{layout.pace.step_seconds:.3f}",
                f"{layout.pace.mfu:.1%}",
            )
        )  # fmt: skip
    return "\n".join([f"the quickest of {len(found)} layouts that fit, same batch", *table(rows, left=0)])
