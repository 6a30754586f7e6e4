"""torchrun for one node of a Slurm job: the same options, and what became of the ranks is told the job's supervisor.

Three things are added. The node leaves a word on how each failed rank ended (words.py). Its exit code is that of the
rank that failed first, where torchrun's is always 1. And SIGUSR1, which would end torchrun, goes to the ranks.

Usage: `python -m calm_megatron.launch.node [options of torchrun] SCRIPT [words of the script]`
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from calm_megatron.config.machine import this_node
from calm_megatron.launch.words import Failure, Word


def main(words: Sequence[str]) -> int:
    """Run the ranks of this node to their end; returns the exit code."""
    signal.signal(signal.SIGUSR1, _pass_on)
    # Imported here because importing torch takes a second, and a signal may come any time.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(list(words)))
        word = Word(this_node(), 0)
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        failures = [Failure(rank, int(failure.exitcode), failure.timestamp) for rank, failure in error.failures.items()]
        first = min(failures, key=lambda failure: failure.time).code
        word = Word(this_node(), first if first >= 0 else 128 - first, tuple(failures))
    except SignalException as error:
        word = Word(this_node(), 128 + int(error.sigval), error=f"the launcher got {error.sigval.name}")
    except Exception as error:
        Word(this_node(), 1, error=f"{type(error).__name__}: {error}").leave()
        raise
    word.leave()
    return word.code


def _pass_on(number: int, frame: FrameType | None) -> None:
    """To the ranks; where Slurm has reached them already, once more does no harm."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
