"""What a rank sends in one optimizer step, from the config alone: for whom, what for, by which collective.

Bytes are those of a ring over n ranks: of an all-reduce 2 (n - 1) / n of the tensor, of an all-gather or
reduce-scatter (n - 1) / n of the whole tensor, of a send all of it. Losses, norms and other single figures are not in.

Per micro-batch, X being a hidden state (P, B, H), P without the last patch unless under sequence parallelism:

    Transformer layer      4 all-reduces of X (attention and MLP, forward and backward); with sequence parallelism 6
                           all-gathers (the linear layers' inputs again for the gradient of their weights) and 4
                           reduce-scatters. Recomputation repeats the forward pass but for its last exchange.
    patch embedding        2 K + 1 all-reduces of X: token embeddings, their gradient, the compression's output
    head                   1 all-reduce of X (gradient of the hidden states), the samples (N, R, Z) or of a diffusion or
                           flow head their terms, 2 or 3 numbers each in fp32, and the sum of the gradients of the
                           copied weights
    to the next stage      X, or within the head x and y of this rank's samples (with the energy head one y for all);
                           their gradient back
    data ranks             gradients once a step (ZeRO 0 and 1) or once a micro-batch (2 and 3), and the new weights
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from calm_megatron.config.schema import (
    AutoencoderConfig,
    CalmConfig,
    DiffusionHeadConfig,
    EnergyHeadConfig,
    RunConfig,
)
from calm_megatron.plan.held import HeldLayer, held_layers
from calm_megatron.plan.stages import stage_layers


@dataclass(frozen=True, order=True)
class Kind:
    """What a rank sends."""

    among: str
    """The ranks: tensor, data or pipeline."""
    purpose: str
    collective: str


def step_traffic(
    config: RunConfig, data_ranks: int = 1, stage: int = 0, autoencoder: AutoencoderConfig | None = None
) -> dict[Kind, float]:
    """Bytes that a rank of a pipeline stage sends in an optimizer step of CALM, by kind.

    Args:
        config: of the run; its ranks of other kinds than data ranks stand there.
        data_ranks: how many ranks read different sequences.
        stage: the pipeline stage.
        autoencoder: as in `layer_costs`; it moves the cut into stages.

    Raises:
        TypeError: the run trains another model.
    """
    layers = held_layers(config, stage, autoencoder)
    step = _Step.of(config, data_ranks)
    sent: dict[Kind, float] = defaultdict(float)
    pairs = [*_between_stages(config, step, stage, autoencoder), *_data(layers, step)]
    for layer in layers:
        pairs += _tensor(layer, step)
    for kind, size in pairs:
        sent[kind] += size
    return {kind: size for kind, size in sorted(sent.items()) if size}


Parts = Iterator[tuple[Kind, float]]


@dataclass(frozen=True)
class _Step:
    config: RunConfig
    model: CalmConfig
    micro_batches: int
    data_ranks: int
    width: int
    """Bytes of a number that travels."""

    @staticmethod
    def of(config: RunConfig, data_ranks: int) -> "_Step":
        assert isinstance(config.model, CalmConfig)
        train = config.train
        micro_batches = train.global_batch_size // (train.micro_batch_size * data_ranks)
        return _Step(config, config.model, micro_batches, data_ranks, 4 if train.precision == "fp32" else 2)

    @property
    def tensor_ranks(self) -> int:
        return self.config.parallel.tensor_model_parallel_size

    @property
    def predicted(self) -> int:
        """Patches of a sequence that are predicted."""
        return self.config.data.seq_length // self.model.patch_size - 1

    def bytes(self, numbers: float) -> float:
        """Of so many numbers in each micro-batch."""
        return numbers * self.width * self.micro_batches

    @property
    def hidden_states(self) -> float:
        """Bytes of X in a step."""
        positions = self.predicted + (1 if self.config.parallel.sequence_parallel else 0)
        return self.bytes(positions * self.config.train.micro_batch_size * self.model.hidden_size)

    @property
    def rows(self) -> int:
        """R, predicted patches of a micro-batch."""
        return self.predicted * self.config.train.micro_batch_size


def _tensor(layer: HeldLayer, step: _Step) -> Parts:
    """Among the tensor ranks."""
    share = (step.tensor_ranks - 1) / step.tensor_ranks
    summed = step.bytes(layer.summed)
    yield Kind("tensor", "copied weights", "all-reduce"), 2 * share * summed
    if layer.name == "head.input":
        yield from _exchange("hidden states", 1, 1, 1, step)
    elif layer.name == "head.output":
        yield Kind("tensor", "samples", "all-gather"), share * _gathered(step)
    elif layer.name == "patch_embedding":
        # K token embeddings of a patch, or its latent: looked up, and read by the compression's first layer.
        from_tokens = step.model.input == "tokens"
        looked_up = step.model.patch_size if from_tokens else 0
        read = looked_up if from_tokens else step.model.latent_size / step.model.hidden_size
        yield from _exchange("matrices", looked_up + read + 1, looked_up + 2 * read + 1, looked_up + read + 1, step)
    elif layer.name.startswith("layers."):
        again = 1 if step.config.train.recompute_granularity == "full" else 0
        yield from _exchange("matrices", 4 + again, 6 + 2 * again, 4 + again, step)


def _gathered(step: _Step) -> float:
    """Bytes of the samples, or of their terms, in a step."""
    model = step.model
    if isinstance(model.head, EnergyHeadConfig):
        return step.bytes(model.head.num_samples * step.rows * model.latent_size)
    terms = 3 if isinstance(model.head, DiffusionHeadConfig) else 2
    return 4 * terms * model.head.num_samples * step.rows * step.micro_batches


def _exchange(purpose: str, reduced: float, gathered: float, scattered: float, step: _Step) -> Parts:
    """So many times X: all-reduced, or under sequence parallelism gathered and reduce-scattered."""
    X, share = step.hidden_states, (step.tensor_ranks - 1) / step.tensor_ranks
    if step.config.parallel.sequence_parallel:
        yield Kind("tensor", purpose, "all-gather"), gathered * share * X
        yield Kind("tensor", purpose, "reduce-scatter"), scattered * share * X
    else:
        yield Kind("tensor", purpose, "all-reduce"), 2 * reduced * share * X


def _between_stages(config: RunConfig, step: _Step, stage: int, autoencoder: AutoencoderConfig | None) -> Parts:
    """Forward to the next stage, gradients to the one before."""
    stages = stage_layers(config, config.parallel.pipeline_model_parallel_size, autoencoder)
    if stage + 1 < len(stages):
        yield Kind("pipeline", "activations", "send"), _boundary(stages[stage + 1][0], step)
    if stage > 0:
        yield Kind("pipeline", "activations' gradients", "send"), _boundary(stages[stage][0], step)


def _boundary(first: str, step: _Step) -> float:
    """What enters the stage that begins with this layer."""
    if first.startswith("head.") and first != "head.input":
        own_samples = step.model.head.num_samples / step.tensor_ranks
        states = own_samples + 1 if isinstance(step.model.head, EnergyHeadConfig) else 2 * own_samples
        return step.bytes(states * step.rows * step.model.hidden_size)
    return step.hidden_states / (step.tensor_ranks if step.config.parallel.sequence_parallel else 1)


def _data(layers: list[HeldLayer], step: _Step) -> Parts:
    """Among the data ranks.

    Stages 1 and 2 all-reduce gradients as stage 0 does, though each rank keeps its part only: DeepSpeed 0.19.8 does so
    unless told to reduce rank by rank. Stage 3 gathers a large weight once for forward and backward pass, unless more
    than `REUSED_WITHIN` numbers are used in between; small ones stay, and are gathered when they have changed.
    """
    zero, share = step.config.parallel.zero_stage, (step.data_ranks - 1) / step.data_ranks
    weights = sum(layer.weights for layer in layers)
    times = step.micro_batches if zero >= 2 else 1
    gradients = share * weights * step.width * times
    if zero < 3:
        yield Kind("data", "gradients", "all-reduce"), 2 * gradients
    else:
        yield Kind("data", "gradients", "reduce-scatter"), gradients
    if zero in (1, 2):
        yield Kind("data", "weights", "all-gather"), share * weights * step.width
    if zero == 3:
        large = sum(layer.gathered for layer in layers)
        twice = max(0, large - REUSED_WITHIN // 2)
        numbers = (large + twice) * step.micro_batches + weights - large
        yield Kind("data", "weights", "all-gather"), share * numbers * step.width


REUSED_WITHIN = 10**9
"""DeepSpeed's `stage3_max_reuse_distance`."""
