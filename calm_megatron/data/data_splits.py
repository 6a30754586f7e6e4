"""The data sets of a run."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import DataConfig
from calm_megatron.data.corpus_facts import find_tokenizer, read_facts
from calm_megatron.data.meaning import Meaning
from calm_megatron.data.open_data import open_splits, prefixes
from calm_megatron.data.sequences import Sequences, check_lengths


@dataclass(frozen=True)
class DataSplits:
    """The data of a run. All splits share one tokenizer."""

    train: Sequences
    valid: Sequences | None
    test: Sequences | None
    tokenizer_of: Path
    """Prefix of a data set that knows where the tokenizer is."""

    @classmethod
    def open(cls, config: DataConfig, *, patch_size: int, seed: int, vocab_size: int) -> "DataSplits":
        """Open what the configuration names and check it against the model.

        Training data is shuffled by `seed` and endless; validation and test are in their order and end.

        Args:
            config: section `data` of the run.
            patch_size: K.
            seed: of the run.
            vocab_size: of the model.

        Raises:
            UserError: a data set is missing or damaged, paths contradict each other, data sets are of different
                tokenizers, the model's vocabulary is another one, or a split does not fill a sequence.
        """
        check_lengths(config.seq_length, patch_size)
        splits = open_splits(config, patch_size, seed)
        if "train" not in splits:
            raise UserError("there are no training documents", "data", "set data.data_path or data.train_data_path")
        found = splits["train"].meaning.vocab_size
        if found != vocab_size:
            raise UserError(
                f"the model's vocabulary of {vocab_size:,} is not the data set's of {found:,}",
                " and ".join(_named(config)),
                f"set model.vocab_size to {found}",
            )
        return cls(splits["train"], splits.get("valid"), splits.get("test"), Path(_named(config)[0]))

    @property
    def meaning(self) -> Meaning:
        """What the ids mean."""
        return self.train.meaning

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the `tokenizer.json` that all splits were made with."""
        return self.meaning.tokenizer_fingerprint

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the ids that are trained on, and of their tokenizer."""
        return {"training data": self.train.fingerprint, "tokenizer": self.fingerprint}

    @cached_property
    def tokenizer_path(self) -> Path:
        """Where that tokenizer is now.

        Raises:
            UserError: it is gone, or another.
        """
        return find_tokenizer(self.tokenizer_of, read_facts(self.tokenizer_of))


def _named(config: DataConfig) -> list[str]:
    """Prefixes of the data sets that are files here, those that are trained on first."""
    paths = (config.data_path, config.train_data_path, config.valid_data_path, config.test_data_path)
    return [prefix for path in paths if path is not None for prefix in prefixes(path)]
