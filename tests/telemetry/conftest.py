"""Folders of an autoencoder run and of a CALM run as a real training leaves them, made in a moment."""

import math
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from calm_megatron.telemetry.run_log import Event, LogFile, Record

NOON = 1_760_000_000.0
ENVIRONMENT = {
    "host": "node-7",
    "processor": "Example CPU, 2 usable cores",
    "GPU": "none",
    "ranks": "1",
    "torch": "2.13.0",
}
SAMPLES = [
    {
        "prompt": "KING RICHARD.\n",
        "text": "What says the Duke of Norfolk to the field?\nI'll not be told what lesser men have done.",
        "temperature": 1.0,
        "seed": 1,
    },
    {
        "prompt": "If it be love indeed, ",
        "text": "tell me <script>alert('how much')</script> & be brief.",
        "temperature": 0.5,
        "seed": 2,
    },
    {
        "prompt": "",
        "text": "Enter three Witches.\n\nFIRST WITCH.\nThe hurly-burly is not yet begun.",
        "temperature": 1.0,
        "seed": 3,
    },
]


def write_autoencoder_run(folder: Path, steps: int = 1200) -> Path:
    """A run of an autoencoder: log, config, evaluation."""
    write_config(folder, "autoencoder")
    dice, tokens_a_step = random.Random(1), 1024
    log = LogFile(folder / "log.jsonl")
    log.event(Event("start", 0, NOON, f"from step 0 to {steps}", {"environment": ENVIRONMENT}))
    log.event(Event("model", 0, NOON + 1, "3,640,576 parameters", {"parameters": 3_640_576}))
    for step in range(1, steps + 1):
        share = step / steps
        cross_entropy = 6.9 * math.exp(-7 * share) * dice.lognormvariate(0, 0.12) + 0.25
        kl = (40 + 200 * min(share / 0.15, 1) - 100 * share) * dice.lognormvariate(0, 0.02)
        values = {
            "loss": 4 * cross_entropy + 1e-3 * kl,
            "autoencoder/cross_entropy": cross_entropy,
            "autoencoder/kl": kl,
            "learning_rate": 3e-3 * min(share / 0.1, 1) * (1 - share),
            "grad_norm": 4 * math.exp(-2 * share) * dice.lognormvariate(0, 0.3),
            "tokens": tokens_a_step * step,
            "speed/seconds_per_step": 0.2,
        }
        if step > 1:
            values["speed/tokens_per_second"] = 5100 * dice.lognormvariate(0, 0.03)
        log.record(Record("train", step, NOON + 2 + 0.2 * step, values))
        if step % (steps // 10) == 0:
            wrong = max(0.7 * math.exp(-8.5 * share), 6e-4)
            values = {
                "token_accuracy_sample": 1 - wrong,
                "token_accuracy_mean": 1 - 0.6 * wrong,
                "loss": 4 * cross_entropy,
            }
            log.record(Record("validation", step, NOON + 2 + 0.2 * step, values))
    log.event(Event("checkpoint", steps, NOON + 3 + 0.2 * steps, f"saved step {steps}", {}))
    log.close()
    robustness = [(0.1, 0.9989), (0.2, 0.9981), (0.3, 0.9954), (0.5, 0.962), (0.7, 0.871), (1.0, 0.612)]
    evaluation = {
        "task": "autoencoder",
        "step": steps,
        "token_accuracy_sample": 0.99871,
        "token_accuracy_mean": 0.99934,
        "cross_entropy": 0.0061,
        "kl": 142.7,
        "collapsed_dimensions": 3,
        "latent_size": 64,
        "robustness": [{"sigma": sigma, "token_accuracy": accuracy} for sigma, accuracy in robustness],
        "tokens": 131_072,
        "split": "test",
    }
    write_json(folder / "evaluation.json", evaluation)
    return folder


def write_calm_run(folder: Path, steps: int = 2000) -> Path:
    """A run of CALM that was killed and resumed: log, config, evaluation, baselines, samples."""
    write_config(folder, "calm")
    dice, killed, saved = random.Random(2), int(0.45 * steps), int(0.4 * steps)
    log = LogFile(folder / "log.jsonl")
    log.event(Event("start", 0, NOON + 300, f"from step 0 to {steps}", {"environment": ENVIRONMENT}))
    log.event(Event("model", 0, NOON + 300, "5,812,224 parameters", {"parameters": 5_812_224}))
    for first, last, begin in ((1, killed, NOON + 301), (saved + 1, steps, NOON + 700)):
        if first > 1:
            log.event(Event("resume", saved, begin - 1, f"from step {saved} to {steps}", {"environment": ENVIRONMENT}))
        for step in range(first, last + 1):
            share = step / steps
            spread = 5.2 * (1 - 0.3 * math.exp(-9 * share)) * dice.lognormvariate(0, 0.02)
            target = (6.6 + 6.0 * math.exp(-9 * share)) * dice.lognormvariate(0, 0.02)
            values = {
                "loss": 2 * target - spread,
                "energy/distance_targets": target,
                "energy/distance_samples": spread,
                "learning_rate": 1e-3 * min(share / 0.05, 1) * 0.5 * (1 + math.cos(math.pi * share)),
                "grad_norm": 0.9 * dice.lognormvariate(0, 0.35),
                "tokens": 2048 * step,
                "speed/seconds_per_step": 0.15,
            }
            if step > first:
                values["speed/tokens_per_second"] = 13_650 * dice.lognormvariate(0, 0.03)
            log.record(Record("train", step, begin + 0.15 * (step - first), values))
            if step % (steps // 8) == 0:
                score = 7.4 * (1 - math.exp(-3 * share))
                log.record(
                    Record(
                        "validation",
                        step,
                        begin + 0.15 * (step - first),
                        {"loss": 2 * target - spread, "brierlm": score},
                    )
                )
    log.event(Event("checkpoint", steps, begin + 0.15 * steps, f"saved step {steps} in checkpoints/step_{steps}", {}))
    log.close()
    evaluation = {
        "task": "calm",
        "loss": 7.91,
        **score_fields(7.21, 6.94, 7.49, [0.2113, 0.0871, 0.0341, 0.0118]),
        "confidence": 0.95,
        "tokens": 245_760,
        "patches": 61_440,
    }
    baselines = {
        "untrained": score_fields(0.0, 0.0, 0.04, [0.0012, 0.0001, 0.0, 0.0]),
        "unigram": score_fields(1.12, 1.01, 1.24, [0.0291, 0.0018, 0.0002, 0.00001]),
    }
    write_json(folder / "evaluation.json", evaluation)
    write_json(folder / "baselines.json", baselines)
    write_json(folder / "samples.json", SAMPLES)
    return folder


def write_config(folder: Path, task: str) -> None:
    """The whole config, as a run saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    model: dict[str, Any] = {"type": task, "vocab_size": 1024, "patch_size": 4, "latent_size": 64, "hidden_size": 128}
    if task == "autoencoder":
        model |= {"num_encoder_layers": 2, "num_decoder_layers": 2}
    else:
        model |= {
            "num_layers": 4,
            "hidden_size": 192,
            "autoencoder": "runs/demo/autoencoder",
            "head": {"type": "energy", "num_layers": 2},
        }
    config = {
        "run": {"directory": str(folder), "seed": 1234},
        "model": model,
        "data": {"data_path": "runs/demo/data/shakespeare", "split": "96,2,2", "seq_length": 256},
        "train": {"train_iters": 2000, "global_batch_size": 8, "precision": "fp32"},
        "optimizer": {"lr": 1e-3, "lr_decay_style": "cosine"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def score_fields(brierlm: float, low: float, high: float, brier: list[float]) -> dict[str, Any]:
    """A score as evaluations and baselines hold it."""
    return {"brierlm": brierlm, "brierlm_low": low, "brierlm_high": high, "brier": brier}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_bytes(orjson.dumps(content))


@pytest.fixture
def autoencoder_run(tmp_path: Path) -> Path:
    """Folder of a small autoencoder run."""
    return write_autoencoder_run(tmp_path / "autoencoder", steps=120)


@pytest.fixture
def calm_run(tmp_path: Path) -> Path:
    """Folder of a small CALM run that was resumed once."""
    return write_calm_run(tmp_path / "calm", steps=160)
