"""What a run is: one frozen tree of dataclasses, with Megatron's option names where Megatron has the option.

The tree holds plain values only and imports no torch, so that planners and launchers can read it.
`files.py` builds it from YAML and the command line, `checks.py` refuses what cannot work.

Units: lengths and batch sizes in tokens or sequences as the names say, durations in seconds.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

# Strict: `true` is no number and "8" is no integer; a wrong type is a slip to be shown, not to be converted.
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=True)]
Switch = Annotated[bool, Field(strict=True)]


class Section:
    """Base of all parts of a config: an unknown key is an error."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class RunSection(Section):
    """Who the run is and where everything it writes lives."""

    directory: str
    """Folder of the run: config, checkpoints, logs, TensorBoard events and report."""
    seed: NonNegativeInt = 1234
    """Root of all randomness: initial weights, data order and noise."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Section):
    """The autoencoder of K tokens and one latent vector (CALM, section 3). Defaults are the official ones."""

    type: Literal["autoencoder"] = "autoencoder"
    """Kind of model."""
    vocab_size: PositiveInt
    """Entries of the vocabulary, the pad token included; must be the data set's."""
    patch_size: PositiveInt = 4
    """K, tokens per latent vector."""
    latent_size: PositiveInt = 128
    """Z, numbers in a latent vector."""
    hidden_size: PositiveInt = 512
    """Width of the layers."""
    ffn_hidden_size: PositiveInt = 1280
    """Inner width of the gated MLP of each layer."""
    num_encoder_layers: PositiveInt = 2
    """Half of them work on single tokens, half on the patch."""
    num_decoder_layers: PositiveInt = 2
    """Half of them work on the patch, half on single tokens."""
    layernorm_epsilon: PositiveFloat = 1e-6
    """Added to the mean square in the norms."""
    init_method_std: PositiveFloat = 0.02
    """Standard deviation of the initial matrices."""
    dropout: Fraction = 0.15
    """Share of tokens replaced by id 0, and of latent elements dropped, in training."""
    kl_clamp: NonNegativeFloat = 0.5
    """Free bits: smallest KL counted per latent element, in nats."""
    kl_weight: NonNegativeFloat = 1e-3
    """Weight of the KL in the loss."""
    round_embedding_to_bf16: Switch = False
    """Round the token embedding to bf16 in training, as the official code does even in fp32 runs."""


@dataclass(frozen=True, kw_only=True)
class EnergyHeadConfig(Section):
    """The one-step generative head trained by the energy score (CALM, section 4)."""

    type: Literal["energy"] = "energy"
    """Kind of head."""
    num_layers: PositiveInt = 4
    """Residual blocks of the head."""
    noise_size: PositiveInt = 64
    """Uniform random numbers behind each sample."""
    num_samples: Annotated[int, Field(ge=2, strict=True)] = 8
    """N, vectors drawn by the model for each patch in training."""
    num_target_samples: PositiveInt = 100
    """M, vectors drawn from the autoencoder's posterior for each patch."""
    shared_noise_patches: PositiveInt = 1
    """Consecutive patches of a sequence whose posterior draws share their noise: faster, and a noisier gradient."""
    beta: Annotated[float, Field(gt=0, lt=2, strict=True)] = 1.0
    """Exponent of the distance; the score is strictly proper within (0, 2)."""


@dataclass(frozen=True, kw_only=True)
class DiffusionHeadConfig(Section):
    """The head that learns to take noise away step by step (Li et al. 2024, the CALM paper's first comparison)."""

    type: Literal["diffusion"] = "diffusion"
    """Kind of head."""
    num_layers: PositiveInt = 4
    """Residual blocks of the head."""
    num_samples: PositiveInt = 8
    """N, vectors drawn from the autoencoder's posterior for each patch, each noised to a level of its own."""
    num_sampling_steps: Annotated[int, Field(ge=2, le=1000, strict=True)] = 100
    """Steps from noise to a sample, each one call of the head."""


@dataclass(frozen=True, kw_only=True)
class FlowHeadConfig(Section):
    """The head that learns the velocity from noise to a vector: flow matching (the CALM paper's second comparison)."""

    type: Literal["flow"] = "flow"
    """Kind of head."""
    num_layers: PositiveInt = 4
    """Residual blocks of the head."""
    num_samples: PositiveInt = 8
    """N, vectors drawn from the autoencoder's posterior for each patch, each met at a time of its own."""
    num_sampling_steps: Annotated[int, Field(ge=1, le=1000, strict=True)] = 10
    """Steps from noise to a sample, by the midpoint rule: two calls of the head each."""


def _energy_by_default(head: Any) -> Any:
    return {"type": "energy", **head} if isinstance(head, dict) else head


HeadConfig = Annotated[
    EnergyHeadConfig | DiffusionHeadConfig | FlowHeadConfig,
    Field(discriminator="type"),
    BeforeValidator(_energy_by_default),
]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Section):
    """What CALM and the autoregressive baseline share: embedding and Transformer."""

    vocab_size: PositiveInt
    """Entries of the vocabulary; must be the data set's, and of CALM the autoencoder's."""
    pad_token_id: NonNegativeInt | None = None
    """Token whose embedding never learns; set from the data set when the run starts."""
    num_layers: PositiveInt
    """Transformer layers."""
    hidden_size: PositiveInt
    """Width of the backbone, and of CALM's head."""
    ffn_hidden_size: PositiveInt
    """Inner width of the gated MLP of each Transformer layer."""
    num_attention_heads: PositiveInt
    """Attention heads; their size, hidden_size / heads, must be even."""
    num_query_groups: PositiveInt | None = None
    """Groups of grouped-query attention; none means one per head."""
    rotary_base: PositiveFloat = 10000.0
    """Base of the rotary position embedding."""
    layernorm_epsilon: PositiveFloat = 1e-6
    """Added to the mean square in the backbone's norms; those of CALM's head have 1e-6."""
    init_method_std: PositiveFloat = 0.02
    """Standard deviation of the initial matrices."""


@dataclass(frozen=True, kw_only=True)
class CalmConfig(BackboneConfig):
    """The continuous autoregressive language model: Transformer over patches and a generative head."""

    type: Literal["calm"] = "calm"
    """Kind of model."""
    autoencoder: str
    """Run folder, checkpoint or official folder of the frozen autoencoder."""
    patch_size: PositiveInt = 4
    """K, tokens per latent vector; must be the autoencoder's."""
    latent_size: PositiveInt = 128
    """Z, numbers in a latent vector; must be the autoencoder's."""
    input: Literal["tokens", "latents"] = "tokens"
    """What the backbone reads: compressed token embeddings, or the frozen encoder's mean latents."""
    head: HeadConfig = field(default_factory=EnergyHeadConfig)


@dataclass(frozen=True, kw_only=True)
class ArConfig(BackboneConfig):
    """The token-level baseline: the same backbone over tokens, a linear layer to the vocabulary, cross-entropy."""

    type: Literal["ar"] = "ar"
    """Kind of model."""
    patch_size: Literal[1] = 1
    """One token a step."""


ModelConfig = Annotated[AutoencoderConfig | CalmConfig | ArConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Which tokens the run sees. Prefixes name megatron-core `.bin`/`.idx` pairs, without the ending."""

    data_path: str | tuple[str, ...] | None = None
    """Data sets, each cut into training, validation and test documents by `split`: one prefix, a list of several, or a
    pattern such as `data/web-*`."""
    split: str = "98,1,1"
    """Shares of training, validation and test documents, counted in tokens."""
    train_data_path: str | tuple[str, ...] | None = None
    """Data sets for training alone, in place of `data_path`."""
    train_shards: str | None = None
    """Tar shards for training, in place of `train_data_path`: a folder, or what webdataset opens with `{}` for the
    file's name, such as `http://host/shards/{}` or `pipe:ssh host cat shards/{}`."""
    shard_streams: PositiveInt = 8
    """Shards that are read side by side over all ranks, a multiple of the data-parallel ranks; decides the order."""
    valid_data_path: str | tuple[str, ...] | None = None
    """Data sets for validation; needed beside `train_data_path` and `train_shards`."""
    test_data_path: str | tuple[str, ...] | None = None
    """Data sets for testing."""
    blend_weights: tuple[PositiveFloat, ...] | None = None
    """Of several training sets, the share of each in the samples, in their order; need not add up to 1."""
    blend_epochs: tuple[PositiveFloat, ...] | None = None
    """Of several training sets, how often each is passed through while others are once; by default each once."""
    seq_length: PositiveInt = 2048
    """Tokens per sequence; a multiple of the patch size."""
    align_documents: Switch = True
    """Fill each document up to whole patches, so that no patch straddles two; false concatenates, as is official."""
    reset_attention_mask: Switch = True
    """Keep attention within a document; false lets it reach across, as the official code does."""
    num_workers: NonNegativeInt = 0
    """Processes of each rank that read training batches; 0 reads in a thread, which does for small models."""
    prefetch_steps: PositiveInt = 2
    """Steps that are read ahead of training."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule. No decay on biases and norm weights."""

    lr: PositiveFloat = 3e-4
    """Largest learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["constant", "linear", "cosine", "WSD"] = "constant"
    """Shape of the schedule behind the warm-up; WSD is stable, then decays."""
    lr_warmup_iters: NonNegativeInt = 0
    """Steps over which the learning rate rises to `lr`, whatever the style."""
    lr_decay_iters: PositiveInt | None = None
    """Step at which `min_lr` is reached; none means the last training step."""
    lr_wsd_decay_iters: PositiveInt | None = None
    """Steps of the last phase of WSD (warm-up, stable, decay)."""
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential"] = "linear"
    """Shape of the last phase of WSD."""
    adam_beta1: Fraction = 0.9
    """Decay of the mean of the gradients."""
    adam_beta2: Fraction = 0.95
    """Decay of the mean of their squares."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the root of the squares."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of matrices and embeddings."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """How long and in which batches."""

    train_iters: PositiveInt
    """Optimizer steps of the whole run."""
    micro_batch_size: PositiveInt = 1
    """Sequences of one forward pass on one rank."""
    global_batch_size: PositiveInt = 1
    """Sequences of one optimizer step, over all ranks."""
    rampup_batch_size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """(start, increment, samples): the batch grows from `start` by `increment` at a time over `samples` samples."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the layers; bf16 and fp16 keep fp32 master weights and gradient sums, fp16 scales its loss."""
    loss_spike_threshold: NonNegativeFloat = 10.0
    """Tell of losses so many standard deviations (robust ones) above the median of the last 100; 0 never does."""
    skip_loss_spikes: Switch = False
    """Leave out the steps of such losses."""
    max_skipped_steps: PositiveInt = 20
    """End the run after so many steps in a row that were left out, as spikes or without a finite loss or gradient."""
    recompute_granularity: Literal["none", "full"] = "none"
    """`full` keeps only each layer's input and computes the rest again in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Section):
    """How the model is spread over ranks; data parallelism takes what is left of the world."""

    tensor_model_parallel_size: PositiveInt = 1
    """CALM: ranks that share each layer's matrices and the samples of the head."""
    pipeline_model_parallel_size: PositiveInt = 1
    """CALM: stages, each with a part of the layers of about the same cost; micro-batches pass through them (1F1B)."""
    sequence_parallel: Switch = False
    """Between the matrices, share the sequence among the tensor ranks too."""
    zero_stage: Annotated[int, Field(ge=0, le=3, strict=True)] = 0
    """DeepSpeed ZeRO: 0 shards nothing, 1 optimizer state, 2 also gradients, 3 also weights."""
    check_replicas_interval: NonNegativeInt = 0
    """Steps between checks that all copies of a weight are equal to the last bit; 0 never checks."""
    startup_check: Switch = True
    """Before the first step let all ranks compare versions, check sums, and measure work, links, memory and disk."""
    distributed_timeout_minutes: PositiveFloat = 10.0
    """How long a rank waits for the others before it gives up."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """When the state of the run is saved."""

    save_interval: NonNegativeInt = 0
    """Steps between checkpoints; 0 saves at the end only."""
    keep_last: PositiveInt = 2
    """Checkpoints kept; older ones are deleted after a newer one is published."""
    keep_every: NonNegativeInt = 0
    """Keep checkpoints of steps that are a multiple of this for good; 0 keeps none."""
    async_save: Switch = True
    """Write in the background, from a copy in the host's memory; false lets training wait for the disk."""
    pretrained_checkpoint: str | None = None
    """Weights that a new run starts with, in place of random ones: run folder, checkpoint, or official folder or file.
    Moments, schedule and place in the data start anew."""
    accept_changed_sources: Switch = False
    """Go on from a checkpoint although data set, tokenizer or autoencoder are others than when it was saved."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """Validation during training and at its end."""

    eval_interval: NonNegativeInt = 0
    """Steps between validations; 0 validates at the end only."""
    eval_iters: PositiveInt = 8
    """Global batches of a validation during training."""
    final_eval_iters: NonNegativeInt = 0
    """Global batches of the validation at the end; 0 takes the whole validation set."""
    brier_pairs: PositiveInt = 1
    """CALM: disjoint pairs of samples that BrierLM averages; 1 as in the official code, more for less noise. With the
    energy head they are of its N samples."""
    rollout_positions: NonNegativeInt = 0
    """Baseline, and CALM with K < 4: places in each sequence from which BrierLM's four tokens are drawn step by step.

    0 gives no BrierLM. For its cost see docs/evaluation.md.
    """
    sampling_steps: PositiveInt | None = None
    """Diffusion and flow head: steps to a sample here; none means `model.head.num_sampling_steps`."""
    noise_sigmas: tuple[NonNegativeFloat, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    """Autoencoder: standard deviations of the Gaussian noise of the robustness curve."""
    confidence: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.95
    """Level of the intervals."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Section):
    """What is told while training."""

    log_interval: PositiveInt = 10
    """Steps between printed lines; every step goes to the files."""
    tensorboard: Switch = True
    """Write TensorBoard scalars into the run folder."""
    straggler_interval: NonNegativeInt = 100
    """Steps between reports of the ranks' own times, which name slow ones; 0 never reports."""
    profile_first_step: PositiveInt | None = None
    """Step from which torch's profiler writes traces for TensorBoard into `profile/`; none never does."""
    profile_steps: PositiveInt = 3
    """Steps of the profiler's window."""
    progress_bar: Switch = True
    """Show a bar with the time left, where stderr is a terminal."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Everything that decides what a run computes; saved whole with the run and with each checkpoint."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def entry_point(self) -> str:
        """The program that trains the model, in the project's folder."""
        return "pretrain_ae.py" if isinstance(self.model, AutoencoderConfig) else "pretrain_calm.py"
