"""Training and validation of CALM."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from calm_megatron.checkpoint.load import load_autoencoder, tokenizer_fingerprint
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import CalmConfig, RunConfig
from calm_megatron.data.batch import Batch
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.evaluate.validation import CalmScores, validate_calm
from calm_megatron.model.autoencoder import FrozenAutoencoder
from calm_megatron.model.calm import Calm, CalmTerms, check_autoencoder
from calm_megatron.model.heads.kinds import term_names
from calm_megatron.model.noise import KeyedNoise
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.parallel.tensor_ranks import TensorRanks
from calm_megatron.train.task import dtype_of, evaluation_plan, own_layers


class CalmTask:
    """The head's loss of the next vector, against the frozen autoencoder's posterior."""

    def __init__(self, config: RunConfig, model: CalmConfig, data: DataSplits, grid: Grid) -> None:
        self.config, self.model, self.data, self.grid = config, model, data, grid
        self.term_names: tuple[str, ...] = term_names(model.head)
        self.streams = RandomStreams(config.run.seed, grid.device)
        autoencoder = load_autoencoder(model.autoencoder)
        check_autoencoder(model, autoencoder.config)
        _check_tokenizer(model.autoencoder, data)
        frozen = FrozenAutoencoder(autoencoder)
        self.fingerprints: Mapping[str, str] = {"autoencoder": frozen.fingerprint()}
        self.autoencoder = frozen.to(grid.device, dtype_of(config))

    def build(self) -> nn.Module:
        """CALM with its initial weights."""
        module = new_calm(self.config, self.model, self.autoencoder, self.grid)
        module.initialise(self.config.run.seed)
        return module.to(device=self.grid.device, dtype=dtype_of(self.config))

    def forward(self, module: Callable[..., CalmTerms | Tensor], batch: Batch, step: int) -> CalmTerms | Tensor:
        """The head's loss and its parts."""
        ids_BT = batch.ids_BT.to(self.grid.device, non_blocking=True)
        patches = ids_BT.shape[1] // self.model.patch_size - 1
        noise = KeyedNoise(self.streams, "training", step, batch.sequence_ids_B.tolist(), patches)
        documents_BP = (
            batch.documents_BP.to(self.grid.device, non_blocking=True)
            if self.config.data.reset_attention_mask
            else None
        )
        return module(ids_BT, noise, documents_BP)

    def validate(self, module: nn.Module, split: str, eval_iters: int) -> dict[str, object]:
        """The head's loss and BrierLM; for K < 4 if the config asks for it."""
        plan = evaluation_plan(self.config, self.data, split, eval_iters, self.grid, self.streams)
        assert isinstance(module, Calm)
        scores = validate_calm(module, plan, self.config.data.reset_attention_mask, self.config.evaluation)
        return {"task": "calm", "split": split, **calm_values(scores, self.model.patch_size)}


def new_calm(config: RunConfig, model: CalmConfig, autoencoder: FrozenAutoencoder, grid: Grid) -> Calm:
    """CALM, or this rank's part of it, before its weights are drawn."""
    return Calm(
        model,
        autoencoder,
        recompute=config.train.recompute_granularity == "full",
        ranks=TensorRanks.of_this_process(config.parallel.sequence_parallel),
        held=own_layers(config, grid, autoencoder.config),
    )


def _check_tokenizer(autoencoder: str, data: DataSplits) -> None:
    """Refuse ids that mean something else to the autoencoder; sizes alone may agree."""
    known = tokenizer_fingerprint(autoencoder)
    if known not in (None, data.fingerprint):
        raise UserError(
            "the data set was made with another tokenizer than the autoencoder's",
            f"{data.tokenizer_of} and {autoencoder}",
            "make the data set with the autoencoder's tokenizer (in its run folder), or train another autoencoder",
        )


def calm_values(scores: CalmScores, patch_size: int) -> dict[str, object]:
    """The scores as plain values for logs and files."""
    values: dict[str, object] = {
        "loss": scores.loss,
        **scores.parts,
        "patches": scores.patches,
        "tokens": scores.patches * patch_size,
    }
    if scores.brier is not None:
        values |= scores.brier.as_dict()
    return values
