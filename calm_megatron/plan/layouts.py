"""What a run needs on so many GPUs of a kind, and which layouts of it fit, the quickest first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from calm_megatron.config.checks import check
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import AutoencoderConfig, RunConfig
from calm_megatron.plan.activations import ActivationMemory, activation_memory
from calm_megatron.plan.devices import Device
from calm_megatron.plan.memory import StateMemory, state_memory
from calm_megatron.plan.pace import Assumptions, Pace, pace

USABLE = 0.9
"""Of a device's memory: the rest is for the driver, collectives, and blocks that do not fill."""
_LARGEST_TENSOR, _LARGEST_PIPELINE = 8, 16


@dataclass(frozen=True)
class StageMemory:
    """What a rank of one stage holds at its peak, in bytes."""

    state: StateMemory
    work: ActivationMemory

    @property
    def total(self) -> int:
        """All of it."""
        return self.state.total + self.work.total


@dataclass(frozen=True)
class Layout:
    """One way to run."""

    config: RunConfig
    data_ranks: int
    memory: tuple[StageMemory, ...]
    pace: Pace | None

    @property
    def peak_bytes(self) -> int:
        """Of the fullest rank."""
        return max(stage.total for stage in self.memory)

    def fits(self, device: Device) -> bool:
        """Whether the fullest rank's memory will do."""
        return self.peak_bytes <= USABLE * 1e9 * device.memory_gb


def layout_of(
    config: RunConfig,
    gpus: int,
    device: Device,
    assumed: Assumptions | None = None,
    autoencoder: AutoencoderConfig | None = None,
) -> Layout:
    """Memory and pace of the run as it is.

    Raises:
        TypeError: it is no CALM with an energy head.
        ValueError: its layout does not divide the GPUs, or the batch the data ranks.
    """
    parallel = config.parallel
    stages = parallel.pipeline_model_parallel_size
    data = gpus // (parallel.tensor_model_parallel_size * stages)
    found = pace(config, gpus, device, assumed, autoencoder)
    memory = tuple(
        StageMemory(state_memory(config, data, stage, autoencoder), activation_memory(config, data, stage, autoencoder))
        for stage in range(stages)
    )
    return Layout(config, data, memory, found)


def ranked(
    config: RunConfig,
    gpus: int,
    device: Device,
    assumed: Assumptions | None = None,
    autoencoder: AutoencoderConfig | None = None,
) -> list[Layout]:
    """The layouts that the config allows and the memory holds, the quickest first; the batch stays what it is."""
    found = []
    for variant in _variants(config, gpus):
        try:
            check(variant)
            layout = layout_of(variant, gpus, device, assumed, autoencoder)
        except (UserError, ValueError):
            continue
        if layout.pace is not None and layout.fits(device):
            found.append(layout)
    return sorted(found, key=lambda layout: (layout.pace.step_seconds if layout.pace else 0.0, layout.peak_bytes))


def _variants(config: RunConfig, gpus: int) -> Iterator[RunConfig]:
    """Layouts with powers of two, ZeRO stages that go, and both kinds of recomputation."""
    for tensor in _powers(min(gpus, _LARGEST_TENSOR)):
        for stages in _powers(min(gpus // tensor, _LARGEST_PIPELINE)):
            if gpus % (tensor * stages):
                continue
            for zero in (1, 2, 3) if stages == 1 else (1,):
                parallel = replace(
                    config.parallel,
                    tensor_model_parallel_size=tensor,
                    pipeline_model_parallel_size=stages,
                    sequence_parallel=tensor > 1,
                    zero_stage=zero,
                )
                data = gpus // (tensor * stages)
                for micro_batch in _powers(min(8, max(1, config.train.global_batch_size // data))):
                    for recompute in ("none", "full"):
                        train = replace(
                            config.train,
                            micro_batch_size=micro_batch,
                            recompute_granularity=recompute,
                        )
                        yield replace(config, parallel=parallel, train=train)


def _powers(largest: int) -> list[int]:
    """1, 2, 4, ... up to the largest."""
    return [2**power for power in range(largest.bit_length())]
