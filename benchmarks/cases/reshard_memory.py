"""Peak memory of the offline reshard of a model of 1 GB in weights and moments, against that size."""

import functools
import shutil
from pathlib import Path

from benchmarks.harness import Row, peak_elsewhere, row
from benchmarks.saved import State, on_disk, save, store
from calm_megatron.checkpoint.reshard import reshard
from calm_megatron.config.schema import ArConfig
from calm_megatron.parallel.grid import one_rank

ROUNDS = 2
MIB = 1 << 20


def shapes(model: ArConfig) -> dict[str, tuple[int, ...]]:
    """Of the weights of a baseline."""
    H, F, vocabulary = model.hidden_size, model.ffn_hidden_size, (model.vocab_size, model.hidden_size)
    layer = {
        "input_layernorm.weight": (H,),
        "self_attention.linear_qkv.weight": (3 * H, H),
        "self_attention.linear_proj.weight": (H, H),
        "pre_mlp_layernorm.weight": (H,),
        "mlp.linear_fc1.weight": (2 * F, H),
        "mlp.linear_fc2.weight": (H, F),
    }
    layers = {f"layers.{number}.{name}": shape for number in range(model.num_layers) for name, shape in layer.items()}
    return {"embedding.tokens.weight": vocabulary, **layers, "final_norm.weight": (H,), "output.weight": vocabulary}


def cut_in_two(source: Path) -> None:
    """For two tensor ranks, two files each."""
    target = source.parent / "two_ranks"
    reshard(source, target, 2, 2)
    shutil.rmtree(target)


def run() -> Row:
    """Save, and reshard in processes of their own."""
    with on_disk() as folder, one_rank() as grid:
        checkpoints = store(folder / "run", grid)
        assert isinstance(checkpoints.config.model, ArConfig)
        state = State(shapes(checkpoints.config.model))
        save(checkpoints, state, 1)
        size = state.bytes / MIB
        del state
        peaks = [peak_elsewhere(functools.partial(cut_in_two, folder / "run")) for _ in range(ROUNDS)]
    return row(peaks, [size] * ROUNDS, "MiB")
