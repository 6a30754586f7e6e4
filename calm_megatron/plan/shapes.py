"""What a model is made of, layer by layer: its matrices, how often each is used, and its other weights.

Counts of parameters (counts.py) and of FLOPs (layers.py) are sums over these.
"""

from dataclasses import dataclass

from calm_megatron.config.schema import (
    ArConfig,
    AutoencoderConfig,
    BackboneConfig,
    CalmConfig,
    EnergyHeadConfig,
    FlowHeadConfig,
    HeadConfig,
)

_TIME_FEATURES = 256


@dataclass(frozen=True)
class Matrix:
    """A matrix of weights, and the vectors that it is multiplied with."""

    inputs: int
    outputs: int
    bias: bool = True
    rows: int = 1
    """Vectors for each position: for each patch, or for each token of the baseline."""
    input_learns: bool = True
    """Whether the backward pass goes on to the input; noise has no gradient."""

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Layer:
    """A layer that a pipeline stage holds whole."""

    matrices: tuple[Matrix, ...]
    other_parameters: int = 0
    """Of norms, and of embeddings that are looked up."""

    @property
    def parameters(self) -> int:
        """All its weights."""
        return sum(matrix.parameters for matrix in self.matrices) + self.other_parameters


def model_layers(model: BackboneConfig) -> dict[str, Layer]:
    """The layers of CALM or the baseline in the order of computation, by the prefix of their parameters' names.

    Raises:
        TypeError: for another model.
    """
    H = model.hidden_size
    backbone = {f"layers.{number}": _transformer_layer(model) for number in range(model.num_layers)}
    backbone["final_norm"] = Layer((), H)
    if isinstance(model, CalmConfig):
        return {"patch_embedding": _patch_embedding(model), **backbone, **_head(model, model.head)}
    if isinstance(model, ArConfig):
        vocabulary = model.vocab_size
        return {
            "embedding": Layer((), vocabulary * H),
            **backbone,
            "output": Layer((Matrix(H, vocabulary, bias=False),)),
        }
    raise TypeError(f"{type(model).__name__} is neither CALM nor the baseline")


def encoder(config: AutoencoderConfig) -> Layer:
    """The autoencoder's encoder for one patch, without the embedding that it shares with the decoder."""
    H, K, layers = config.hidden_size, config.patch_size, config.num_encoder_layers
    matrices = (*_residual_layers(config, layers), Matrix(K * H, H), Matrix(H, 2 * config.latent_size))
    return Layer(matrices, (layers + 1) * H)


def decoder(config: AutoencoderConfig) -> Layer:
    """The autoencoder's decoder for one patch, without that embedding."""
    H, K, layers = config.hidden_size, config.patch_size, config.num_decoder_layers
    matrices = (*_residual_layers(config, layers), Matrix(config.latent_size, H), Matrix(H, K * H))
    return Layer(matrices, (layers + 1) * H)


def _residual_layers(config: AutoencoderConfig, layers: int) -> tuple[Matrix, ...]:
    """Gated MLPs, half of them on each of the K tokens, half on the patch."""
    H, ffn = config.hidden_size, config.ffn_hidden_size
    rows = [config.patch_size] * (layers // 2) + [1] * (layers // 2)
    return tuple(Matrix(*size, bias=False, rows=row) for row in rows for size in ((H, ffn), (H, ffn), (ffn, H)))


def _transformer_layer(model: BackboneConfig) -> Layer:
    H, heads, ffn = model.hidden_size, model.num_attention_heads, model.ffn_hidden_size
    groups = model.num_query_groups or heads
    sizes = ((H, H + 2 * (H // heads * groups)), (H, H), (H, 2 * ffn), (ffn, H))
    return Layer(tuple(Matrix(*size, bias=False) for size in sizes), 2 * H)


def _patch_embedding(model: CalmConfig) -> Layer:
    """Frozen latents need no gradient, but megatron-core's linear layers compute one for any input."""
    H, from_tokens = model.hidden_size, model.input == "tokens"
    inputs = model.patch_size * H if from_tokens else model.latent_size
    embedding = model.vocab_size * H if from_tokens else 0
    return Layer((Matrix(inputs, 2 * H), Matrix(2 * H, H)), embedding + 2 * H)


def _head(model: CalmConfig, head: HeadConfig) -> dict[str, Layer]:
    return _energy_head(model, head) if isinstance(head, EnergyHeadConfig) else _denoising_head(model)


def _energy_head(model: CalmConfig, head: EnergyHeadConfig) -> dict[str, Layer]:
    """Input, blocks and output: N rows of samples for each patch, but one of what depends on the hidden state alone."""
    H, N = model.hidden_size, head.num_samples
    norm = 2 * H
    inputs = (Matrix(head.noise_size, H, rows=N, input_learns=False), Matrix(H, H))
    # The first linear meets [x; y]: its x half all samples, its y half the hidden state.
    block = (
        Matrix(H, H, bias=False, rows=N),
        Matrix(H, H),
        Matrix(H, H, rows=N),
        Matrix(H, 2 * H, rows=N),
        Matrix(H, H, rows=N),
    )
    output = (Matrix(H, H, rows=N), Matrix(H, model.latent_size, rows=N))
    return {
        "head.input": Layer(inputs, 2 * norm),
        **{f"head.blocks.{number}": Layer(block, norm) for number in range(head.num_layers)},
        "head.output": Layer(output, norm),
    }


def _denoising_head(model: CalmConfig) -> dict[str, Layer]:
    """Of diffusion and flow matching: all but the hidden state's embedding works on each of N samples.

    The noised latent and its time have no gradient. That a table of times serves many samples is not counted.
    """
    H, Z, N = model.hidden_size, model.latent_size, model.head.num_samples
    norm = 2 * H
    outputs = Z if isinstance(model.head, FlowHeadConfig) else 2 * Z
    time = (Matrix(_TIME_FEATURES, H, rows=N, input_learns=False), Matrix(H, H, rows=N))
    inputs = (*time, Matrix(H, H), Matrix(Z, H, rows=N, input_learns=False))
    block = (Matrix(H, 3 * H, rows=N), Matrix(H, H, rows=N), Matrix(H, H, rows=N))
    return {
        "head.input": Layer(inputs),
        **{f"head.blocks.{number}": Layer(block, norm) for number in range(model.head.num_layers)},
        "head.output": Layer((Matrix(H, 2 * H, rows=N), Matrix(H, outputs, rows=N))),
    }
