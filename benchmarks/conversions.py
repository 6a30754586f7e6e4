"""Conversions of a whole model for benchmarks: an official folder with random weights, and watched processes."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.saved import forget
from calm_megatron.checkpoint.official_config import SpecialTokens, official_config
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, ModelConfig
from calm_megatron.model.official import AUTOENCODER_PREFIX, official_shapes
from calm_megatron.plan.report import read_for_plan
from calm_megatron.release.tensor_files import TensorFilesWriter, TensorPlan

ROOT = Path(__file__).resolve().parents[1]
SHARD_BYTES = 10**9
_BLOCK = bytearray(1 << 24)


@dataclass(frozen=True)
class Watched:
    """What a process took."""

    seconds: float
    mib: float
    """Memory at its peak, libraries included."""


def model_of(name: str) -> ModelConfig:
    """Of an example."""
    return read_for_plan([ROOT / "examples" / "models" / f"{name}.yaml"]).model


def write_official(folder: Path, calm: CalmConfig, autoencoder: AutoencoderConfig) -> int:
    """An official folder in bf16 with random weights; returns its weights."""
    inner = replace(autoencoder, patch_size=calm.patch_size, latent_size=calm.latent_size, vocab_size=calm.vocab_size)
    shapes = official_shapes(calm)
    shapes |= {AUTOENCODER_PREFIX + name: shape for name, shape in official_shapes(inner).items()}
    folder.mkdir()
    config = official_config(calm, SpecialTokens(), 2048, "bfloat16")
    config["ae_config"] = official_config(inner, SpecialTokens(), 2048, "bfloat16")
    (folder / "config.json").write_text(json.dumps(config))
    writer = TensorFilesWriter(folder, [TensorPlan(*each, torch.bfloat16) for each in shapes.items()], SHARD_BYTES)
    dice = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        # Of a trained model's size: norms near 1, matrices such that the layers keep what comes.
        values = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=dice)
        writer.write(name, values + 1 if len(shape) == 1 and name.endswith("weight") else values)
    writer.finish()
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def convert(*words: str | Path) -> Watched:
    """Run tools/convert_checkpoint.py.

    Raises:
        AssertionError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    since = time.perf_counter()
    command = [sys.executable, ROOT / "tools" / "convert_checkpoint.py", *words]
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise AssertionError(f"{words[0]} ended with {process.returncode}")
    return Watched(time.perf_counter() - since, used.ru_maxrss / 1024)


def copy_seconds(source: Path, target: Path) -> float:
    """To read one folder's files and write as many bytes as the other's: what the disk can do."""
    read = [path for path in source.rglob("*.safetensors") if path.is_file()]
    size = sum(path.stat().st_size for path in target.rglob("*.safetensors"))
    plain = target.with_name("plain")
    for folder in {path.parent for path in read}:
        forget(folder)
    since = time.perf_counter()
    for path in read:
        with path.open("rb", buffering=0) as file:
            while file.readinto(_BLOCK):
                pass
    with plain.open("wb") as file:
        for begin in range(0, size, len(_BLOCK)):
            file.write(memoryview(_BLOCK)[: size - begin])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - since
    plain.unlink()
    return seconds
