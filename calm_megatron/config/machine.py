"""Which machine this is. By Python's own library only, as jobs ask it on hosts that may have no more."""

import os


def this_node() -> str:
    """Its name: Slurm's, else the machine's."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename
