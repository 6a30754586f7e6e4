"""The one exception for what a user can mend: shown as one message, never as a traceback."""

import os
import select
import sys
import time
import warnings
from collections.abc import Callable

_GRACE_SECONDS = 5

MISTAKE = 2
"""Exit code when something has to be mended by hand: to start again as it is would end the same."""
RANK_LOST = 69
"""Exit code of a rank that lost another one: the cause lies there (EX_UNAVAILABLE of sysexits.h)."""
REQUEUE = 75
"""Exit code of a run that was stopped by a signal and has saved: start it again (EX_TEMPFAIL of sysexits.h)."""


class UserError(Exception):
    """Something outside the code is wrong: a file, a setting, an environment.

    Args:
        what: what is wrong, in a sentence.
        where: file, line, setting or rank that it concerns.
        what_to_do: the next step for the user.
    """

    exit_code = MISTAKE

    def __init__(self, what: str, where: str = "", what_to_do: str = "") -> None:
        self.what, self.where, self.what_to_do = what, where, what_to_do
        super().__init__(what, where, what_to_do)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.what_to_do:
            lines.append(f"  to do: {self.what_to_do}")
        return "\n".join(lines)


def run_command_line(main: Callable[[], int | None]) -> None:
    """Run a command line's `main`: a `UserError` becomes one message on stderr and its exit code.

    When nobody reads stdout any more, as behind `| head -1`, the program ends quietly, with exit code 1.
    """
    # megatron-core warns at import, file by file, that GPU libraries are missing, and it and DeepSpeed call what newer
    # releases of torch rename: news for their authors, not for users of the pinned versions.
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex|full scope is deprecated)", module="megatron")
    warnings.filterwarnings("ignore", category=FutureWarning, message="`torch.distributed", module="torch.distributed")
    try:
        result = main()
        sys.stdout.flush()
        sys.exit(result)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # What is still to be written goes nowhere, or Python complains once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            # What is wrong everywhere is told by rank 0, after which the launcher ends the others while they wait here.
            time.sleep(_GRACE_SECONDS)
        print(f"error: {f'rank {rank}: ' if rank else ''}{error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # Errors are told unasked.
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
