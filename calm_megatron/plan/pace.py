"""How long a step takes, from FLOPs, traffic and stated assumptions: an estimate, to compare layouts by.

A stage's forward pass of a micro-batch takes its FLOPs / (tensor ranks x peak x share of the peak), and the exchange
among the tensor ranks; the backward pass likewise. The simulated schedule (simulation.py) puts the stages together.
Gradients are exchanged among the data ranks after the last micro-batch, hidden behind nothing.
"""

from dataclasses import dataclass, replace

from calm_megatron.config.schema import AutoencoderConfig, RunConfig
from calm_megatron.plan.devices import Device
from calm_megatron.plan.layers import layer_costs
from calm_megatron.plan.simulation import StageTimes, simulate
from calm_megatron.plan.stages import stage_layers
from calm_megatron.plan.traffic import step_traffic


@dataclass(frozen=True)
class Assumptions:
    """What an estimate takes for granted; measure yours and put them in."""

    peak_share: float = 0.5
    """Of the device's peak that matrix products reach, all work between them included."""
    link_share: float = 0.7
    """Of a link's bandwidth that collectives reach."""
    network_gb: float = 50.0
    """Between nodes, in GB a second, direction and GPU (400 Gb/s each)."""
    gpus_per_node: int = 8

    def __str__(self) -> str:
        """As they are printed."""
        return (
            f"matrix products at {self.peak_share:.0%} of the peak, links at {self.link_share:.0%} of theirs, "
            f"{self.network_gb:g} GB/s a GPU between nodes of {self.gpus_per_node}, no exchange hidden behind work"
        )


@dataclass(frozen=True)
class Pace:
    """Of a whole run."""

    step_seconds: float
    mfu: float
    """Model FLOPs (nothing computed twice) over the peak of all GPUs."""
    bubble: float
    """Share of the step in which the mean stage waits."""
    hours: float
    """For `train.train_iters` steps."""
    gpu_hours: float


def pace(
    config: RunConfig,
    gpus: int,
    device: Device,
    assumed: Assumptions | None = None,
    autoencoder: AutoencoderConfig | None = None,
) -> Pace | None:
    """Of a CALM on so many GPUs; none where the device's peak in the run's precision is unknown.

    Raises:
        TypeError: another model.
        ValueError: the layout does not divide the GPUs, or the batch the data ranks.
    """
    assumed = assumed or Assumptions()
    peak = device.flops.get(config.train.precision)
    if peak is None:
        return None
    layout, train = config.parallel, config.train
    tensor, stages = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    data, left = divmod(gpus, tensor * stages)
    micro_batches, rest = divmod(train.global_batch_size, train.micro_batch_size * max(data, 1))
    if left or rest or not micro_batches:
        raise ValueError("the layout does not divide")
    times = [
        _stage_times(config, data, stage, peak * assumed.peak_share, device, assumed, micro_batches, autoencoder)
        for stage in range(stages)
    ]
    step = simulate(times, micro_batches)
    flops = model_flops(config, autoencoder) * train.global_batch_size
    hours = step.seconds * train.train_iters / 3600
    return Pace(
        step_seconds=step.seconds,
        mfu=flops / (step.seconds * gpus * peak),
        bubble=1 - sum(step.busy) / stages,
        hours=hours,
        gpu_hours=hours * gpus,
    )


def model_flops(config: RunConfig, autoencoder: AutoencoderConfig | None = None) -> int:
    """FLOPs of forward and backward pass for a sequence, without what is computed again."""
    once = replace(config, train=replace(config.train, recompute_granularity="none"))
    return sum(cost.step_flops for cost in layer_costs(once, autoencoder))


def _stage_times(
    config: RunConfig,
    data: int,
    stage: int,
    flops_a_second: float,
    device: Device,
    assumed: Assumptions,
    micro_batches: int,
    autoencoder: AutoencoderConfig | None,
) -> StageTimes:
    layout, sequences = config.parallel, config.train.micro_batch_size
    tensor, stages = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    names = stage_layers(config, stages, autoencoder)[stage]
    costs = [cost for cost in layer_costs(config, autoencoder) if cost.name in names]
    forward = sum(cost.forward_flops for cost in costs) * sequences / tensor / flops_a_second
    backward = sum(cost.step_flops - cost.forward_flops for cost in costs) * sequences / tensor / flops_a_second
    # Tensor ranks are neighbours; stages are farthest apart, and data ranks leave the node unless all fit into it.
    inside, outside = (1e9 * assumed.link_share * speed for speed in (device.link_gb, assumed.network_gb))
    per_node = assumed.gpus_per_node
    speeds = {
        "tensor": inside if tensor <= per_node else outside,
        # A ring over nodes has as many ways between them as it has GPUs in a node.
        "data": inside if tensor * data <= per_node else min(inside, outside * max(1, per_node // tensor)),
        "pipeline": inside if tensor * data * stages <= per_node else outside,
    }
    seconds: dict[tuple[str, str], float] = {}
    for kind, size in step_traffic(config, data, stage, autoencoder).items():
        key = (kind.among, kind.purpose if kind.among == "pipeline" else "")
        seconds[key] = seconds.get(key, 0.0) + size / speeds[kind.among]
    exchanged = seconds.get(("tensor", ""), 0.0) / micro_batches / 2
    return StageTimes(
        forward=forward + exchanged,
        backward=backward + exchanged,
        send_forward=seconds.get(("pipeline", "activations"), 0.0) / micro_batches,
        send_backward=seconds.get(("pipeline", "activations' gradients"), 0.0) / micro_batches,
        update=seconds.get(("data", ""), 0.0),
    )
