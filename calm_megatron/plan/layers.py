"""The layers of a pipeline in their order, and what each costs: parameters, and FLOPs of a training step.

FLOPs are two for each multiply-add of a matrix product. Elementwise work, norms and embedding look-ups do not count.
Attention counts the causal half of all pairs of positions, as if no document ended within the sequence.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from calm_megatron.config.schema import AutoencoderConfig, BackboneConfig, CalmConfig, EnergyHeadConfig, RunConfig
from calm_megatron.plan.shapes import Matrix, encoder, model_layers


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs; FLOPs are for one sequence of `data.seq_length` tokens, over all tensor ranks."""

    name: str
    """Prefix of the names of its parameters."""
    parameters: int
    forward_flops: int
    """Of the forward pass."""
    step_flops: int
    """Of forward and backward pass, and of what the backward pass computes again."""


@dataclass(frozen=True)
class _Flops:
    forward: int
    backward: int = 0
    again: int = 0
    """In the backward pass, where it computes the layer's forward pass again."""

    def __add__(self, other: "_Flops") -> "_Flops":
        return _Flops(self.forward + other.forward, self.backward + other.backward, self.again + other.again)


def layer_names(model: BackboneConfig) -> tuple[str, ...]:
    """Names of the layers in the order of computation: the prefixes of the names of the model's parameters."""
    return tuple(model_layers(model))


@lru_cache(maxsize=256)
def layer_costs(config: RunConfig, autoencoder: AutoencoderConfig | None = None) -> tuple[LayerCost, ...]:
    """What each layer of CALM or of the baseline costs, in the order of `layer_names`.

    The last position of a sequence predicts nothing and is left out, as the model does without sequence parallelism.

    Args:
        config: of the run.
        autoencoder: of a CALM: its encoder works without gradient for the layer that makes the targets, and for the
            first where `model.input` is "latents". Without it that work is not counted. Its parameters never are: it is
            no part of the model. The targets are made for the head's output with the energy head, else for its input;
            that another stage which holds the output makes them again is not counted.

    Raises:
        TypeError: the run trains an autoencoder, which has no pipeline.
    """
    model = config.model
    if isinstance(model, AutoencoderConfig):
        raise TypeError("an autoencoder has no pipeline of layers")
    positions = config.data.seq_length // model.patch_size - 1
    full = config.train.recompute_granularity == "full"
    costs = []
    for name, layer in model_layers(model).items():
        flops = _products(layer.matrices, positions) + _other_work(name, model, positions, autoencoder)
        again = flops.again if full and name.startswith(("layers.", "head.blocks.")) else 0
        costs.append(LayerCost(name, layer.parameters, flops.forward, flops.forward + flops.backward + again))
    return tuple(costs)


def _products(matrices: Iterable[Matrix], positions: int) -> _Flops:
    """Matrices of weights: the backward pass takes one product for the weight, and one for the input if it learns."""
    total = _Flops(0)
    for matrix in matrices:
        once = 2 * positions * matrix.rows * matrix.inputs * matrix.outputs
        total += _Flops(once, once * (2 if matrix.input_learns else 1), once)
    return total


def _other_work(name: str, model: BackboneConfig, positions: int, autoencoder: AutoencoderConfig | None) -> _Flops:
    """Matrix products of a layer with no weight of its own in them."""
    if name.startswith("layers."):
        return _attention(model, positions)
    total = _Flops(0)
    if isinstance(model, CalmConfig):
        scored = isinstance(model.head, EnergyHeadConfig)
        if name == "head.output":
            total += _energy_score(model, positions)
        encodes = name == ("head.output" if scored else "head.input") or (
            name == "patch_embedding" and model.input == "latents"
        )
        if autoencoder is not None and encodes:
            total += _Flops(_products(encoder(autoencoder).matrices, positions).forward)
    return total


def _attention(model: BackboneConfig, positions: int) -> _Flops:
    """Scores and values of all pairs within the causal half."""
    pairs = positions * (positions + 1) // 2
    once = 2 * 2 * pairs * model.hidden_size
    return _Flops(once, 2 * once, once)


def _energy_score(model: CalmConfig, positions: int) -> _Flops:
    """Distances among samples and to targets, and their gradient, both in the forward pass.

    Other heads need no products; nor do samples that all but coincide, whose distances are taken of differences.
    """
    head = model.head
    if not isinstance(head, EnergyHeadConfig):
        return _Flops(0)
    once = 2 * positions * head.num_samples * (head.num_samples + head.num_target_samples) * model.latent_size
    return _Flops(2 * once)
