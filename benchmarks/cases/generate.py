"""Time of generating 32 tokens after each of four prompts at T = 1/2, against the plain algorithm.

The part beside the row is the share of the pool's tokens that ours decodes, beside all of them.
"""

from dataclasses import replace

from benchmarks.generating import made
from benchmarks.harness import Part, Row, compare_times


def run() -> Row:
    """Compare the times."""
    generating = made()
    decoded = Part("share of tokens decoded", generating.decoded(), 1.0)
    return replace(compare_times(generating.ours, generating.plain, rounds=5), parts=(decoded,))
