"""The other way to share the head among tensor ranks: matrices cut as Megatron cuts an MLP, all samples on each rank.

Pairs of a column-parallel and a row-parallel linear keep what lies between them cut: linear_in and linear_mid, gate_up
and down_proj of each block, and both linears of the output. What is small stays a copy. Compared, not used.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from benchmarks.small_run import RandomTokens
from calm_megatron.config.schema import CalmConfig
from calm_megatron.model.backbone import transformer_config
from calm_megatron.model.calm import Calm
from calm_megatron.model.heads.energy import EnergyHead, HeadBlock, HeadOutput
from calm_megatron.model.heads.head import LAYER_NORM_EPSILON
from calm_megatron.model.norms import LayerNorm
from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel.tensor_ranks import TensorRanks


def cut_numbers(model: CalmConfig, rows: int) -> int:
    """Numbers that the tensor ranks all-reduce for R rows in forward and backward pass of the head cut like this.

    A block: two outputs and two gradients of (N, R, H), and the gradient of y. The output: one gradient of (N, R, H)
    and the samples.
    """
    H, N = model.hidden_size, model.head.num_samples
    block = 4 * N * rows * H + rows * H
    return model.head.num_layers * block + N * rows * H + N * rows * model.latent_size


class CutTask(RandomTokens):
    """The same model, data and noise with the cut head."""

    def build(self) -> nn.Module:
        """CALM with its initial weights."""
        module = CutCalm(self.model, self.autoencoder, ranks=TensorRanks.of_this_process(sequence_parallel=False))
        module.initialise(self.config.run.seed)
        return module


class CutCalm(Calm):
    """CALM whose head is cut, without sequence parallelism."""

    def __init__(self, config: CalmConfig, *arguments: Any, ranks: TensorRanks) -> None:
        super().__init__(config, *arguments, ranks=ranks)
        self.sharding = CutSharding(config, ranks.rank, ranks.size)
        self.ranks = Together(ranks.rank, ranks.size)
        self.head = CutHead(config, transformer_config(config, torch.float32, ranks), self.ranks)

    def initialise(self, seed: int) -> None:
        """Draw the weights of the whole head as ever, and take this rank's parts."""
        cut = self.head
        self.head = EnergyHead(self.config)
        super().initialise(seed)
        cast(CutHead, cut).take(self.head)
        self.head = cut


class Together(TensorRanks):
    """Tensor ranks that all work on all samples: behind the backbone nothing is shared out or collected."""

    def own_rows(self, whole: Tensor, dim: int = 0) -> Tensor:
        """All rows."""
        return whole

    def to_partial_work(self, hidden_PBH: Tensor) -> Tensor:
        """As it is: the gradient comes back whole."""
        return hidden_PBH

    def gather_samples(self, samples_NRZ: Tensor) -> Tensor:
        """As they are: each rank has all."""
        return samples_NRZ


class CutSharding(Sharding):
    """What the engine asks of the weights."""

    def is_cut(self, name: str) -> bool:
        """Column-parallel weights and biases, and row-parallel weights."""
        if name.startswith("head."):
            return ".column_" in name or (".row_" in name and name.endswith("weight"))
        return super().is_cut(name)

    def whole_shape(self, name: str, part: torch.Size) -> tuple[int, ...]:
        """Of the head the part's own: parameters are not counted here."""
        return tuple(part) if name.startswith("head.") else super().whole_shape(name, part)


class CutHead(EnergyHead):
    """The energy head with cut blocks and output; its samples are the same on all ranks."""

    def __init__(self, config: CalmConfig, core: TransformerConfig, ranks: TensorRanks) -> None:
        super().__init__(config, ranks)
        H = config.hidden_size
        self.blocks = nn.ModuleDict({number: CutBlock(H, core) for number in self.blocks})
        self.output = CutOutput(H, config.latent_size, core)

    def take(self, whole: EnergyHead) -> None:
        """This rank's parts of a whole head."""
        assert whole.input is not None and whole.output is not None
        with torch.no_grad():
            cast(nn.Module, self.input).load_state_dict(whole.input.state_dict())
            for own, block in zip(self.blocks.values(), whole.blocks.values(), strict=True):
                cast(CutBlock, own).take(cast(HeadBlock, block), self.ranks)
            cast(CutOutput, self.output).take(cast(HeadOutput, whole.output), self.ranks)


class CutBlock(nn.Module):
    """`HeadBlock` with its matrices cut; what depends on y alone is computed once per patch here too."""

    def __init__(self, hidden_size: int, core: TransformerConfig) -> None:
        super().__init__()
        H = hidden_size
        self.in_ln = LayerNorm(H, eps=LAYER_NORM_EPSILON)
        self.column_x, self.column_y = column(H, H, core, bias=False), column(H, H, core)
        self.row_mid = row(H, H, core)
        self.column_gate_up = column(H, 2 * H, core)
        self.row_down = row(H, H, core)

    def take(self, whole: HeadBlock, ranks: TensorRanks) -> None:
        """This rank's parts of a whole block."""
        weight_x, weight_y = whole.linear_in.weight.chunk(2, dim=1)
        self.in_ln.load_state_dict(whole.in_ln.state_dict())
        own = ranks.rank, ranks.size
        copy_column(self.column_x, weight_x, None, *own)
        copy_column(self.column_y, weight_y, whole.linear_in.bias, *own)
        copy_row(self.row_mid, whole.linear_mid, *own)
        gate_up = whole.linear_gate_up
        copy_column(self.column_gate_up, gate_up.weight, gate_up.bias, *own, stacked=2)
        copy_row(self.row_down, whole.down_proj, *own)

    def forward(self, x_NRH: Tensor, y_RH: Tensor) -> Tensor:
        """Returns the new x (N, R, H)."""
        inner = F.silu(self.column_x(self.in_ln(x_NRH))[0] + self.column_y(y_RH)[0])
        gate, up = self.column_gate_up(F.silu(self.row_mid(inner)[0]))[0].chunk(2, dim=-1)
        output: Tensor = x_NRH + self.row_down(F.silu(gate) * up)[0]
        return output


class CutOutput(nn.Module):
    """`HeadOutput` with its matrices cut."""

    def __init__(self, hidden_size: int, latent_size: int, core: TransformerConfig) -> None:
        super().__init__()
        self.in_ln = LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)
        self.column_in = column(hidden_size, hidden_size, core)
        self.row_out = row(hidden_size, latent_size, core)

    def take(self, whole: HeadOutput, ranks: TensorRanks) -> None:
        """This rank's parts of a whole output."""
        self.in_ln.load_state_dict(whole.in_ln.state_dict())
        copy_column(self.column_in, whole.linear_in.weight, whole.linear_in.bias, ranks.rank, ranks.size)
        copy_row(self.row_out, whole.linear_out, ranks.rank, ranks.size)

    def forward(self, x_NRH: Tensor) -> Tensor:
        """Latents (N, R, Z)."""
        output: Tensor = self.row_out(F.silu(self.column_in(self.in_ln(x_NRH))[0]))[0]
        return output


def column(inputs: int, outputs: int, core: TransformerConfig, bias: bool = True) -> nn.Module:
    """A linear whose outputs are cut."""
    layer: nn.Module = ColumnParallelLinear(
        inputs, outputs, config=core, init_method=nn.init.zeros_, bias=bias, gather_output=False
    )
    return layer


def row(inputs: int, outputs: int, core: TransformerConfig) -> nn.Module:
    """A linear whose inputs are cut."""
    common = {"config": core, "init_method": nn.init.zeros_, "bias": True}
    layer: nn.Module = RowParallelLinear(inputs, outputs, input_is_parallel=True, skip_bias_add=False, **common)
    return layer


def copy_column(layer: nn.Module, weight: Tensor, bias: Tensor | None, rank: int, size: int, stacked: int = 1) -> None:
    """Take this rank's outputs of a whole linear, of each of the matrices that are stacked in it."""
    for name, whole in (("weight", weight), ("bias", bias)):
        if whole is not None:
            parts = [matrix.chunk(size)[rank] for matrix in whole.chunk(stacked)]
            cast(Tensor, getattr(layer, name)).copy_(torch.cat(parts))


def copy_row(layer: nn.Module, whole: nn.Linear, rank: int, size: int) -> None:
    """Take this rank's inputs of a whole linear; the bias, added to the sum, is a copy."""
    cast(Tensor, layer.weight).copy_(whole.weight.chunk(size, dim=1)[rank])
    cast(Tensor, layer.bias).copy_(whole.bias)
