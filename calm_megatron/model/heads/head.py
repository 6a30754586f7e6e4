"""What a head is to the rest: two functions of a hidden state and of noise, a training loss and a sampler.

A head is made of an input, residual blocks and an output, under these names; a pipeline stage may hold some of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from calm_megatron.config.schema import CalmConfig
from calm_megatron.model.noise import LossNoise, Noise
from calm_megatron.parallel.tensor_ranks import TensorRanks

LAYER_NORM_EPSILON = 1e-6

Runner = Callable[..., Tensor]
"""Calls a function with arguments, and may compute it again in the backward pass."""
Posterior = Callable[[], tuple[Tensor, Tensor]]
"""Gives mean and log standard deviation (R, Z) of the autoencoder's posterior, the targets. A call, as not every
pipeline stage needs them."""


def run_at_once(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """The plain call."""
    return function(*arguments)


def holds_all(layer: str) -> bool:
    """Every layer: the whole model."""
    return True


@dataclass(frozen=True)
class HeadTerms:
    """What the loss is made of, one number for each of R patches, in fp32."""

    loss_R: Tensor
    """The one that carries the gradient."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Others, detached, by the names under which they are logged."""
    samples_NRZ: Tensor | None = None
    """The model's samples, where the loss is made of samples."""


class Head(nn.Module, ABC):
    """A generative head: the law of the next latent vector, given the hidden state before it."""

    part_names: ClassVar[tuple[str, ...]]
    """Names of the parts of its loss."""
    loss_has_samples: ClassVar[bool]
    """Whether its loss is made of samples, so that an evaluation need not draw others."""

    def __init__(
        self,
        config: CalmConfig,
        ranks: TensorRanks,
        input_layer: nn.Module | None,
        blocks: Mapping[str, nn.Module],
        output_layer: nn.Module | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.ranks = ranks
        self.input = input_layer
        self.blocks = nn.ModuleDict(blocks)
        self.output = output_layer

    @property
    def is_here(self) -> bool:
        """Whether this stage holds any part of the head."""
        return self.input is not None or len(self.blocks) > 0 or self.output is not None

    @abstractmethod
    def loss(
        self, state: Tensor, posterior: Posterior, noise: LossNoise, run: Runner = run_at_once
    ) -> HeadTerms | Tensor:
        """Training loss of R patches. Tensor ranks share the samples, each with its copy of the head.

        Args:
            state: hidden states (R, H), whole on every tensor rank; of a stage without the head's input, what the
                stage before it gave.
            posterior: of the next patches.
            noise: of R rows.
            run: calls the blocks.

        Returns:
            The terms, the same on every tensor rank; of a stage without the head's output, what goes to the next.
        """

    @abstractmethod
    def sample(self, hidden_RH: Tensor, noise: Noise, count: int, steps: int | None = None) -> Tensor:
        """Samples (count, R, Z) of the vector after each of R hidden states; the head must be whole.

        Args:
            hidden_RH: hidden states.
            noise: of R rows.
            count: samples of each.
            steps: in how many steps; none takes those of the model's config.

        Raises:
            UserError: the head cannot sample in so many steps.
        """

    @abstractmethod
    def demand_steps(self, steps: int | None) -> int:
        """The number of sampling steps, from what was asked for; arguments and errors as in `sample`."""

    @abstractmethod
    def zero_weights(self) -> tuple[str, ...]:
        """Names, within the head, of the weights that start at zero, beside all biases."""

    @abstractmethod
    def xavier_weights(self) -> tuple[str, ...]:
        """Names of those that start as Glorot and Bengio's uniform ones."""
