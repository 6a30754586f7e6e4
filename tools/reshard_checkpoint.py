"""Write a checkpoint again, cut for other tensor ranks and into other files, without holding the model in memory.

No run needs it: any layout resumes from any checkpoint. But ranks that find their own part in files of its own read
just these, while others read the whole weights that were cut otherwise.

Example: python tools/reshard_checkpoint.py runs/a runs/b/checkpoints/step_00001000 --tensor-model-parallel-size 2
"""

import argparse
from pathlib import Path

from calm_megatron.config.errors import run_command_line


def main() -> None:
    """Read the command line and reshard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="checkpoint, or run folder for its newest")
    add("target", type=Path, metavar="TARGET", help="folder to make; a run finds <run>/checkpoints/step_<step>")
    add("--tensor-model-parallel-size", type=int, required=True, metavar="N", help="tensor ranks to cut for")
    add("--files", type=int, default=1, metavar="M", help="files of each tensor rank (default: 1)")
    arguments = parser.parse_args()
    # Heavy imports wait until the command line is known to be good.
    from calm_megatron.checkpoint.meter import progress_bar
    from calm_megatron.checkpoint.reshard import reshard

    size, files = arguments.tensor_model_parallel_size, arguments.files
    with progress_bar() as meter:
        source = reshard(arguments.source, arguments.target, size, files, meter)
    print(f"{source} is now in {arguments.target} too, for tensor_model_parallel_size {size}, in {size * files} files")


if __name__ == "__main__":
    run_command_line(main)
