"""What a process that trains does first of all, so that neither signals nor the end of its launcher find it unready."""

import os
import signal

from calm_megatron.config.parent import die_with_parent

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
