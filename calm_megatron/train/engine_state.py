"""Weights, moments and scalars of a DeepSpeed engine, found where each ZeRO stage keeps them.

Without ZeRO they are whole on each data rank. ZeRO 1 and 2 hold a run of the fp32 weights of a group in one flat
tensor, to which `_hp_mapping` leads from the weight; ZeRO 3 holds a run of each weight, padded to the same length on
all ranks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calm_megatron.checkpoint.pieces import KINDS, Piece, Place
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.warm_start import Weights
from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel.grid import Grid

_LOSS_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class EngineState:
    """The state of an engine, to be saved and restored.

    Args:
        engine: DeepSpeed's.
        model: the model or stage that it trains.
        sharding: how tensor ranks cut its weights; none where they never do.
        zero_stage: of the run.
        grid: place of this rank.
    """

    def __init__(self, engine: Any, model: nn.Module, sharding: Sharding | None, zero_stage: int, grid: Grid) -> None:
        self._engine, self._optimizer = engine, engine.optimizer
        self._model, self._sharding, self._zero_stage, self._grid = model, sharding, zero_stage, grid
        self._adam: torch.optim.Optimizer = getattr(self._optimizer, "optimizer", self._optimizer)

    def own_pieces(self) -> list[Piece]:
        """This rank's share; ranks that hold the same run each take a part of it."""
        own = []
        for piece in self._pieces():
            if self._zero_stage == 0:
                piece = piece.share(self._grid.data_rank, self._grid.data_parallel_size)
            if piece.place.parts == 1:
                piece = piece.share(self._grid.tensor_rank, self._grid.tensor_size)
            own.append(piece)
        return [piece for piece in own if piece.place.start < piece.place.stop]

    def scalars(self) -> dict[str, Any]:
        """Updates done, steps left out, and the loss scale of fp16."""
        steps = {int(state["step"]) for state in self._adam.state.values()}
        return {
            "updates": max(steps, default=0),
            "skipped": int(self._engine.skipped_steps),
            "loss_scaler": {name: getattr(scaler, name) for scaler in self._loss_scalers() for name in _LOSS_SCALER},
        }

    def restore(self, state: SavedState, scalars: Mapping[str, Any]) -> None:
        """Take over what was saved, whatever the layout."""
        with torch.no_grad():
            for piece in self._pieces():
                for kind, value in piece.values.items():
                    value.copy_(state.read(kind, piece.place))
            self._refresh(state)
        for moments in self._adam.state.values():
            moments["step"].fill_(scalars["updates"])
        self._engine.skipped_steps = scalars["skipped"]
        for scaler in self._loss_scalers():
            for name, value in scalars["loss_scaler"].items():
                setattr(scaler, name, value)

    def take_weights(self, source: Weights) -> None:
        """Take over weights alone, whatever layout they come from; moments and scalars stay those of a new run."""
        with torch.no_grad():
            for piece in self._pieces():
                piece.values["weight"].copy_(source.read("weight", piece.place))
            self._refresh(source)

    def _loss_scalers(self) -> list[Any]:
        """The one of fp16. In other precisions ZeRO has one that stays at 1, which says nothing to a run in fp16."""
        scaler = getattr(self._optimizer, "loss_scaler", None)
        return [scaler] if getattr(scaler, "dynamic", False) else []

    def _refresh(self, state: Weights) -> None:
        """Set what the layers calculate with, in the run's precision, where it lies beside the fp32 weights."""
        if self._zero_stage == 0:
            return
        for name, weight in self._model.named_parameters():
            if self._zero_stage < 3:
                whole = self._place(name, weight, range(weight.numel()))
                weight.data.copy_(state.read("weight", whole).view(weight.shape))
            elif found := self._values(weight):
                run, (master, *_) = found
                here: Tensor = weight.ds_tensor  # type: ignore[attr-defined]
                here.view(-1)[: len(run)].copy_(master)

    def _pieces(self) -> Iterator[Piece]:
        """All runs that this rank holds the fp32 values of."""
        self._demand_moments()
        for name, weight in self._model.named_parameters():
            found = self._values(weight)
            if found is not None:
                run, values = found
                yield Piece(self._place(name, weight, run), dict(zip(KINDS, values, strict=True)))

    def _values(self, weight: nn.Parameter) -> tuple[range, tuple[Tensor, ...]] | None:
        """The run of a weight that this rank holds, and views of its master weights and moments."""
        if self._zero_stage == 0:
            return range(weight.numel()), tuple(value.view(-1) for value in self._with_moments(weight, weight.data))
        if self._zero_stage == 3:
            run = self._run_of_zero3(weight)
            group, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(weight)]
            flat, length = self._optimizer.fp32_partitioned_groups_flat[group], run.stop - run.start
            if not length:
                return None
            return run, tuple(value[offset : offset + length] for value in self._with_moments(flat, flat.data))
        mapping = weight._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        (flat,) = self._adam.param_groups[mapping.param_group_index]["params"]
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        run = range(there.start, there.start + there.numel)
        return run, tuple(value[here.start : here.start + here.numel] for value in self._with_moments(flat, flat.data))

    def _run_of_zero3(self, weight: nn.Parameter) -> range:
        """Elements of a weight that ZeRO 3 keeps on this data rank."""
        length: int = weight.ds_tensor.ds_numel  # type: ignore[attr-defined]
        total: int = weight.ds_numel  # type: ignore[attr-defined]
        start = min(self._grid.data_rank * length, total)
        return range(start, min(start + length, total))

    def _place(self, name: str, weight: nn.Parameter, run: range) -> Place:
        shape = tuple(getattr(weight, "ds_shape", weight.shape))
        cut = self._sharding is not None and self._sharding.is_cut(name)
        part, parts = (self._grid.tensor_rank, self._grid.tensor_size) if cut else (0, 1)
        return Place(name, part, parts, shape, run.start, run.stop)

    def _with_moments(self, key: Tensor, master: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = self._adam.state[key]
        return master, state["exp_avg"], state["exp_avg_sq"]

    def _demand_moments(self) -> None:
        """Make Adam's moments, zero, before its first step has."""
        keys = (
            self._optimizer.fp32_partitioned_groups_flat
            if self._zero_stage == 3
            else [weight for group in self._adam.param_groups for weight in group["params"]]
        )
        for key in keys:
            state = self._adam.state[key]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=key.device)
                state["exp_avg"] = torch.zeros_like(key, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(key, memory_format=torch.preserve_format)
