"""Settings of the small runs that tests train for real.

Rate and initial weights are large and the autoencoder is trained for a while, so that within ten steps the losses show
what every part computes: with smaller ones only the head's last bias moves, and a wrong backbone goes unseen.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 320

COMMON = [
    f"model.vocab_size={VOCABULARY}", "model.patch_size=4", "model.hidden_size=32",
    "model.ffn_hidden_size=64", "model.init_method_std=0.1", "data.seq_length=64", "data.split='80,10,10'",
    "train.train_iters=10", "train.global_batch_size=8", "train.micro_batch_size=2",
    "optimizer.lr=1e-2", "optimizer.lr_decay_style=cosine", "optimizer.lr_warmup_iters=3",
    "optimizer.lr_decay_iters=10",
    "evaluation.final_eval_iters=2", "logging.progress_bar=false", "logging.log_interval=5",
]  # fmt: skip
AUTOENCODER = [*COMMON, "model.type=autoencoder", "model.latent_size=16"]
TRAINED_AUTOENCODER = [
    *AUTOENCODER,
    "model.dropout=0.0",
    "model.init_method_std=0.02",
    "train.train_iters=150",
    "optimizer.lr_decay_iters=150",
]
ANY_CALM = [
    *COMMON, "model.type=calm", "model.latent_size=16", "model.num_layers=2", "model.num_attention_heads=4",
    "model.num_query_groups=2", "model.head.num_layers=2", "model.head.num_samples=4",
]  # fmt: skip
CALM = [*ANY_CALM, "model.head.num_target_samples=10"]
DIFFUSION = [*ANY_CALM, "model.head.type=diffusion", "model.head.num_sampling_steps=10"]
FLOW = [*ANY_CALM, "model.head.type=flow", "model.head.num_sampling_steps=4"]
AR = [
    *COMMON, "model.type=ar", "model.patch_size=1", "model.num_layers=2", "model.num_attention_heads=4",
    "model.num_query_groups=2",
]  # fmt: skip


def settings(base: list[str], **changes: object) -> list[str]:
    """Overrides `section__key=value` put over the base settings."""
    merged = dict(text.split("=", 1) for text in base)
    merged |= {name.replace("__", "."): str(value) for name, value in changes.items()}
    return [f"{name}={value}" for name, value in merged.items()]
