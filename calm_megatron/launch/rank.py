"""What a process that trains does first of all, so that neither signals nor the end of its launcher find it unready."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Variable of the environment that torchrun gives its ranks."""


def prepare() -> None:
    """Hold SIGUSR1 back until the loop listens, and die with the launcher.

    The time limit's warning may come while the engines are being loaded. And ranks whose launcher was killed must not
    go on writing into a run folder in which the next start is at work.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    if _LAUNCHED in os.environ:
        die_with_parent()


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however that ends."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # It may have gone before the kernel was asked; but in a container, the first process may be the launcher.
    if os.getppid() != parent or (parent == 1 and not _is_python(parent)):
        os.kill(os.getpid(), signal.SIGKILL)


def _is_python(process: int) -> bool:
    try:
        return "python" in os.readlink(f"/proc/{process}/exe")
    except OSError:
        return False
