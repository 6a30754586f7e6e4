"""Where the time of a training step goes: each part run alone, beside the whole step."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Part
from benchmarks.training import CLIP, K, M, N, Training, Z
from calm_megatron.losses.energy_score import chunk_patches, energy_score_of_blocks
from calm_megatron.model.noise import KeyedNoise

ROUNDS = 3


def shares(training: Training, step: float) -> tuple[Part, ...]:
    """Milliseconds of each part of our step, forward and backward, beside those of the step."""
    model, rows = training.model, len(training.ids_BT) * (training.shape.tokens // K - 1)
    noise = KeyedNoise(training.streams, "profile", 0, [0], rows)
    hidden_RH = torch.randn(rows, training.config.hidden_size).requires_grad_()
    samples_NRZ = torch.randn(N, rows, Z).requires_grad_()
    target_ids_RK = training.ids_BT[:, K:].reshape(-1, K)
    posterior = training.frozen.encode(target_ids_RK)

    def backbone() -> Tensor:
        return model.hidden_states(training.ids_BT[:, :-K])

    def head() -> Tensor:
        return model.head.sample(hidden_RH, noise, N)

    def energy() -> Tensor:
        blocks = noise.normal_blocks("target", M, Z, chunk_patches(N, M, Z), 1)
        return energy_score_of_blocks(samples_NRZ, *posterior, blocks).score

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        training.optimizer.step()

    parts: dict[str, Callable[[], object]] = {
        "embedding and backbone": lambda: backbone().square().mean().backward(),
        "head": lambda: head().square().mean().backward(),
        "energy score": lambda: energy().mean().backward(),
        "targets (the frozen encoder)": lambda: training.frozen.encode(target_ids_RK),
        "clipping and AdamW": update,
    }
    training.our_step()
    return tuple(Part(f"{name}, of a step", _milliseconds(part), step) for name, part in parts.items())


def _milliseconds(part: Callable[[], object]) -> float:
    """The least of some rounds."""
    times = []
    for _ in range(ROUNDS):
        since = time.perf_counter()
        part()
        times.append(1e3 * (time.perf_counter() - since))
    return min(times)
