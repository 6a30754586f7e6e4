"""Taking in and giving away a model of CALM-XL's size in bf16 with random weights, proof by outputs included.

The row is the larger peak of memory, libraries included, against the size of the weights in fp32. The parts beside it
are both peaks and both times; a time stands against reading and writing as many bytes.
"""

from benchmarks.conversions import convert, copy_seconds, model_of, write_official
from benchmarks.harness import Part, Row
from benchmarks.saved import on_disk
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig

MIB = 1 << 20
_FP32_BYTES = 4


def run(model: str = "calm_xl", autoencoder: str = "ae_75m") -> Row:
    """One round: it takes minutes, and some 20 GB of the disk."""
    calm, inner = model_of(model), model_of(autoencoder)
    assert isinstance(calm, CalmConfig) and isinstance(inner, AutoencoderConfig)
    with on_disk() as folder:
        official, ours, again = (folder / name for name in ("official", "ours", "again"))
        size = write_official(official, calm, inner) * _FP32_BYTES / MIB
        taken = convert("import", official, ours)
        given = convert("export", ours, again, "--dtype", "bfloat16")
        parts = (
            Part("import, MiB at its peak", taken.mib, size),
            Part("export, MiB at its peak", given.mib, size),
            Part("import, seconds", taken.seconds, copy_seconds(official, ours)),
            Part("export, seconds", given.seconds, copy_seconds(ours, again)),
        )
    peak = max(taken.mib, given.mib)
    ratio = size / peak
    return Row(ratio=ratio, ours=peak, baseline=size, unit="MiB", spread=(ratio, ratio), parts=parts)
