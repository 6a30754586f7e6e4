"""Processes that must not outlive the one that started them. By Python's own library only, as `machine`."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


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
