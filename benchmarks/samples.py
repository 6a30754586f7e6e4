"""The head shared by samples, and its matrices cut, in one launch: for the cases traffic_samples and time_samples."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.cut_head import cut_numbers
from benchmarks.harness import Part, Row, demand_equal
from benchmarks.small_run import ROOT, launch, small
from calm_megatron.config.schema import CalmConfig, RunConfig
from calm_megatron.plan.report import read_for_plan
from calm_megatron.plan.traffic import step_traffic

TENSOR = "parallel.tensor_model_parallel_size=2"
SETTINGS = (
    TENSOR, "model.hidden_size=128", "model.ffn_hidden_size=352", "model.head.num_layers=4",
    "model.head.num_samples=8", "data.seq_length=512", "train.micro_batch_size=4", "train.global_batch_size=8",
    "model.init_method_std=0.1", "optimizer.lr=3e-3",
)  # fmt: skip
"""As many samples of a micro-batch for each unit of width as CALM-XL has (32; it has 26). The last line makes ten steps
long enough for a wrong head to show in the losses."""
ROUNDS = 9
MB = 1e6
PURPOSES = ("samples", "hidden states", "copied weights")
"""What only sample parallelism sends."""


@functools.cache
def both_ways(rounds: int = ROUNDS) -> Mapping[str, Mapping[str, list[Any]]]:
    """What the first rank found: `sent`, `seconds` and `losses` of "samples" and "matrices".

    Raises:
        AssertionError: both do not train the same.
    """
    found, _ = launch("samples_worker", 2, {"settings": list(SETTINGS), "rounds": rounds})
    demand_equal("losses", torch.tensor(found["samples"]["losses"]), torch.tensor(found["matrices"]["losses"]))
    return found


def traffic(found: Mapping[str, Mapping[str, list[Any]]]) -> Row:
    """What the tensor ranks send for the head, counted; beside it the whole step, the formulas, and published sizes."""
    sent = {name: {tuple(kind): size for *kind, size in both["sent"]} for name, both in found.items()}
    ours = sum(size for (_, purpose, _), size in sent["samples"].items() if purpose in PURPOSES)
    whole, whole_cut = (sum(sent[name].values()) for name in ("samples", "matrices"))
    cut = whole_cut - (whole - ours)
    formula, cut_formula = head_traffic(small(*SETTINGS))
    parts = [
        Part("whole step", whole / MB, whole_cut / MB),
        Part("by samples, against the formula", ours / MB, formula / MB),
        Part("by matrices, against the formula", cut / MB, cut_formula / MB),
    ]
    for name in ("calm_m", "calm_xl"):
        file = Path(ROOT) / "examples" / "models" / f"{name}.yaml"
        for size in (1, 4):
            config = read_for_plan([file], [TENSOR, f"train.micro_batch_size={size}", "train.global_batch_size=4"])
            by_samples, by_matrices = head_traffic(config)
            parts.append(Part(f"{name}, micro-batch {size}, by formula", by_samples / MB, by_matrices / MB))
    ratio = cut / ours
    return Row(ratio=ratio, ours=ours / MB, baseline=cut / MB, unit="MB", spread=(ratio, ratio), parts=tuple(parts))


def head_traffic(config: RunConfig) -> tuple[float, float]:
    """Bytes a step for the head by both formulas, in fp32 on two tensor ranks, where an all-reduce sends its tensor."""
    model, train = config.model, config.train
    assert isinstance(model, CalmConfig)
    rows = train.micro_batch_size * (config.data.seq_length // model.patch_size - 1)
    micro_batches = train.global_batch_size // train.micro_batch_size
    ours = sum(size for kind, size in step_traffic(config).items() if kind.purpose in PURPOSES)
    return ours, 4 * micro_batches * cut_numbers(model, rows)
