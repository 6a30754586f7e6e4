"""What one rank holds of a model: its pipeline stage's layers, and of these the parts of cut weights and the copies."""

from dataclasses import dataclass

from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.plan.shapes import Layer, model_layers
from calm_megatron.plan.stages import stage_layers


@dataclass(frozen=True)
class HeldLayer:
    """One layer's weights on a rank."""

    name: str
    cut: int
    """Weights of which the tensor ranks hold different parts."""
    copied: int
    """Weights of which each tensor rank holds a copy."""
    gathered: int
    """Those in matrices so large that ZeRO-3 shares them among the data ranks until they are used."""
    summed: int
    """Copies whose gradients the tensor ranks sum: each uses its copy for a part of the work."""

    @property
    def weights(self) -> int:
        """All that the rank holds of the layer."""
        return self.cut + self.copied


PERSISTENT = 100_000
"""DeepSpeed's `stage3_param_persistence_threshold`: weights of at most so many elements stay on every rank."""


def held_layers(config: RunConfig, stage: int = 0, autoencoder: AutoencoderConfig | None = None) -> list[HeldLayer]:
    """The layers of CALM on a rank of a pipeline stage, in the order of computation.

    Args:
        config: of the run.
        stage: the pipeline stage.
        autoencoder: as in `layer_costs`; it moves the cut into stages.

    Raises:
        TypeError: the run trains another model.
    """
    model = config.model
    if not isinstance(model, CalmConfig):
        raise TypeError(f"{type(model).__name__} is no CALM")
    names = stage_layers(config, config.parallel.pipeline_model_parallel_size, autoencoder)[stage]
    layers = model_layers(model)
    return [_held(name, layers[name], model, config) for name in names]


def _held(name: str, layer: Layer, model: CalmConfig, config: RunConfig) -> HeldLayer:
    H, ranks, parts = model.hidden_size, config.parallel.tensor_model_parallel_size, config.parallel.sequence_parallel
    if name.startswith("head."):
        matrices = sum(_large(matrix.inputs * matrix.outputs) for matrix in layer.matrices)
        return HeldLayer(name, 0, layer.parameters, matrices, layer.parameters)
    # Norms, and of the compression the last bias.
    copied = {"patch_embedding": 3 * H, "final_norm": H}.get(name, 2 * H)
    embedding = model.vocab_size * H if name == "patch_embedding" and model.input == "tokens" else 0
    own_embedding = -(-model.vocab_size // ranks) * H if embedding else 0
    own_matrices = [matrix.inputs * matrix.outputs // ranks for matrix in layer.matrices]
    return HeldLayer(
        name,
        cut=(layer.parameters - copied - embedding) // ranks + own_embedding,
        copied=copied,
        gathered=sum(map(_large, [own_embedding, *own_matrices])),
        summed=copied if parts else 0,
    )


def _large(size: int) -> int:
    return size if size > PERSISTENT else 0
