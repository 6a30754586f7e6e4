"""Take an official checkpoint in, or give one of ours away; each ends with a proof that both sides give the same.

    import SOURCE TARGET    official folder, or file of weights -> a folder like that of a run, with weights alone
    export SOURCE TARGET    run folder or checkpoint, of any layout -> official folder, with code, tokenizer and card

With --verify nothing is written: SOURCE and TARGET are both there and are compared.

Example: python tools/convert_checkpoint.py export runs/demo/calm releases/calm_demo --license apache-2.0
"""

import argparse
from pathlib import Path

from calm_megatron.config.errors import UserError, run_command_line


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    taken, given = (
        commands.add_parser("import", help="official to ours"),
        commands.add_parser("export", help="ours to official"),
    )
    for command in (taken, given):
        command.add_argument("source", type=Path, metavar="SOURCE")
        command.add_argument("target", type=Path, metavar="TARGET", help="folder to make")
        command.add_argument("--verify", action="store_true", help="compare the two, which are both there already")
    taken.add_argument(
        "--autoencoder",
        type=Path,
        metavar="FOLDER",
        help="of a CALM: official folder with its autoencoder's config.json",
    )
    add = given.add_argument
    add("--autoencoder", metavar="RUN", help="of a CALM: where its autoencoder is, if it was moved")
    add(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as they came, or float32)"
    )
    add(
        "--duplicates",
        action=argparse.BooleanOptionalAction,
        help="write weights under the second names, too, that the official loader wants (default: if they came so)",
    )
    add("--shard-gigabytes", type=float, metavar="GB", help="largest file of weights (default: 5)")
    add("--license", metavar="ID", help="for the model card, such as apache-2.0 (default: unknown)")
    add("--ae-path", metavar="TEXT", help="of a CALM: where the official code shall look for its autoencoder")
    return parser.parse_args()


def main() -> None:
    """Convert, or compare, and print what was found."""
    arguments = parse_arguments()
    # Heavy imports wait until the command line is known to be good.
    from calm_megatron.checkpoint.meter import progress_bar
    from calm_megatron.release.exporting import ExportRequest, export_official, verify
    from calm_megatron.release.importing import import_official

    source, target, autoencoder = arguments.source, arguments.target, arguments.autoencoder
    with progress_bar() as meter:
        if arguments.command == "import":
            if arguments.verify:
                done = verify(target, source, official_autoencoder=autoencoder, meter=meter)
            else:
                done = import_official(source, target, autoencoder, meter)
        else:
            names = ("dtype", "duplicates", "shard_gigabytes", "license", "ae_path")
            options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
            if arguments.verify and options:
                raise UserError("--verify writes nothing", ", ".join(options), "leave these options out")
            if arguments.verify:
                done = verify(source, target, autoencoder, meter=meter)
            else:
                done = export_official(source, target, ExportRequest(autoencoder=autoencoder, **options), meter)
    for note in done.notes:
        print(f"note: {note}")
    print(done.differences.text())
    if arguments.verify and not done.differences.equal:
        raise UserError("the two do not give the same", f"{source} and {target}", "they are not the same model")
    print(f"{source} and {target} are the same model" if arguments.verify else f"wrote {target}")


if __name__ == "__main__":
    run_command_line(main)
