"""One message where torch shows the stack of whatever collective was waiting when another rank went."""

import contextlib
from collections.abc import Iterator

from calm_megatron.config.errors import RANK_LOST, UserError

_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "timed out")
"""What gloo and NCCL say."""


class RankLost(UserError):
    """Another rank is gone: not this one's fault, and to start again may do."""

    exit_code = RANK_LOST


@contextlib.contextmanager
def told(rank: int, stacks: str) -> Iterator[None]:
    """Turn the error of a collective whose other ranks are gone or late into a `RankLost`.

    Args:
        rank: of this process.
        stacks: where a late rank leaves its stacks.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not any(sign in reason for sign in _SIGNS):
            raise
        raise RankLost(
            f"another rank is gone or late: {reason}",
            f"rank {rank}",
            f"look for the first error of the others, and for the stacks of late ranks in {stacks}; then start again, "
            "the run goes on from its last checkpoint",
        ) from error
