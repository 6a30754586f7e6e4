"""What a forward pass keeps for the backward pass on a rank, from the config alone.

Bytes for each row (patch of a micro-batch), with E bytes of a number, H hidden, F inner width, G width of keys, n = N /
tensor ranks samples, and everything within `/t` shared by the tensor ranks. Norms work in fp32 and keep 4 H each.

    Transformer layer   2 (4 H + 4 + E H) of the norms, 2 E H inputs of the first matrices (both / t under sequence
                        parallelism), E (3 H + 3 G) of queries, keys, values and what attention gives, 4 heads, and
                        5 E F of the gated MLP (/t)
    mask                E P for each row, once for all layers, where attention stays within documents
    patch embedding     8 K ids, E K H, 4 E H / t, 4 H + 8
    head, input         n (E noise + 4 H + 8) + E H + 4 H + 8
    head, block         n (4 H + 8 + 5 E H); E H once for all blocks
    head, output        n (4 H + 8 + 2 E H), and 4 N Z for the gradient of the energy score

With full recomputation a Transformer layer keeps E H and a block n E H, and the largest of them is there in full while
it is computed again. The counts of torch agree (tests/plan/test_activations.py). On a GPU, TransformerEngine's layers
and flash attention keep less; that has not been measured.
"""

from dataclasses import dataclass

from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, EnergyHeadConfig, RunConfig
from calm_megatron.plan.stages import stage_layers

TARGET_NUMBERS = 1 << 25
"""Of the targets' noise that is there at a time on a GPU: `losses.energy_score.GPU_CHUNK_NUMBERS`, without torch."""


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes on a rank of a pipeline stage."""

    activations: int
    """Kept by layers and head, over all micro-batches that are on their way."""
    recomputed: int
    """With full recomputation the largest layer, while it is computed again."""
    samples: int
    """Of the energy score: the gradient by the samples of the micro-batches on their way."""
    targets: int
    """Of the energy score: the noise of a chunk of the target samples, on a GPU."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.activations + self.recomputed + self.samples + self.targets


def activation_memory(
    config: RunConfig, data_ranks: int = 1, stage: int = 0, autoencoder: AutoencoderConfig | None = None
) -> ActivationMemory:
    """What a rank of a pipeline stage keeps of CALM with an energy head; arguments as in `step_traffic`.

    Raises:
        TypeError: another model, or another head.
    """
    model, train = config.model, config.train
    if not isinstance(model, CalmConfig) or not isinstance(model.head, EnergyHeadConfig):
        raise TypeError("activations are known for CALM with an energy head")
    stages = config.parallel.pipeline_model_parallel_size
    names = stage_layers(config, stages, autoencoder)[stage]
    micro_batches = train.global_batch_size // (train.micro_batch_size * data_ranks)
    on_their_way = min(stages - stage, micro_batches)  # 1F1B
    rows = (config.data.seq_length // model.patch_size - 1) * train.micro_batch_size
    sizes = _Sizes.of(config)
    full = train.recompute_granularity == "full"
    kept, again = 0, 0
    for name in names:
        whole = sizes.layer(name)
        short = sizes.input_alone(name) if full else None
        kept += whole if short is None else short
        again = max(again, whole if short is not None else 0)
    if any(name.startswith("layers.") for name in names):
        kept += sizes.mask
    last = "head.output" in names
    head = model.head
    if any(name.startswith("head.blocks.") for name in names):
        kept += sizes.number * model.hidden_size * rows
    return ActivationMemory(
        activations=kept * on_their_way,
        recomputed=again,
        samples=4 * head.num_samples * rows * model.latent_size * on_their_way if last else 0,
        targets=4 * min(head.num_target_samples * rows * model.latent_size, TARGET_NUMBERS) if last else 0,
    )


@dataclass(frozen=True)
class _Sizes:
    """Bytes of layers for one micro-batch."""

    model: CalmConfig
    sequences: int
    patches: int
    number: int
    tensor_ranks: int
    sequence_ranks: int
    mask: int
    """Of all layers."""

    @staticmethod
    def of(config: RunConfig) -> "_Sizes":
        model, layout = config.model, config.parallel
        assert isinstance(model, CalmConfig)
        parts = layout.tensor_model_parallel_size if layout.sequence_parallel else 1
        # The last patch predicts nothing; under sequence parallelism it is computed all the same.
        patches = config.data.seq_length // model.patch_size - (1 if parts == 1 else 0)
        number = 4 if config.train.precision == "fp32" else 2
        rows = config.train.micro_batch_size * patches
        mask = number * rows * (-(-patches // 8) * 8) if config.data.reset_attention_mask else 0
        return _Sizes(
            model, config.train.micro_batch_size, patches, number, layout.tensor_model_parallel_size, parts, mask
        )

    def layer(self, name: str) -> int:
        """All that a layer keeps."""
        model, E, t = self.model, self.number, self.tensor_ranks
        assert isinstance(model.head, EnergyHeadConfig)
        H, rows = model.hidden_size, self.sequences * self.patches
        predicted = rows if self.sequence_ranks == 1 else rows - self.sequences
        n = model.head.num_samples // t
        norm = 4 * H + 8
        if name.startswith("layers."):
            return self._transformer_layer()
        if name == "final_norm":
            return rows * (4 * H + 4 + E * H) // self.sequence_ranks
        if name == "patch_embedding":
            inputs = (
                8 * model.patch_size + E * model.patch_size * H if model.input == "tokens" else E * model.latent_size
            )
            return rows * (inputs + 4 * E * H // t + norm // self.sequence_ranks)
        if name == "head.input":
            return predicted * (n * (E * model.head.noise_size + norm) + E * H + norm)
        if name == "head.output":
            return predicted * n * (norm + 2 * E * H)
        return predicted * n * (norm + 5 * E * H)

    def input_alone(self, name: str) -> int | None:
        """What it keeps if it is computed again; none if it never is."""
        model, E = self.model, self.number
        rows = self.sequences * self.patches
        if name.startswith("layers."):
            return rows * E * model.hidden_size // self.sequence_ranks
        if name.startswith("head.blocks."):
            return rows * E * model.hidden_size * model.head.num_samples // self.tensor_ranks
        return None

    def _transformer_layer(self) -> int:
        model, E, t, s = self.model, self.number, self.tensor_ranks, self.sequence_ranks
        H, heads = model.hidden_size, model.num_attention_heads
        keys = H // heads * (model.num_query_groups or heads)
        rows = self.sequences * self.patches
        norms = rows * (2 * (4 * H + 4 + E * H) + 2 * E * H) // s
        attention = rows * (E * (3 * H + 3 * keys) + 4 * heads) // t
        angles = 4 * E * self.patches * H // heads
        return norms + attention + angles + rows * 5 * E * model.ffn_hidden_size // t
