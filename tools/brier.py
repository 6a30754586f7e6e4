"""BrierLM of any causal language model in a Hugging Face directory, on any text.

Draws two continuations of four tokens at some places of each piece of text. Stopped on the way, it goes on from the
partial sums beside --output when it is started again. Needs the package transformers.

Example: python tools/brier.py --model models/some-llama --input texts/test.jsonl --output brier.json
"""

import argparse
import json
import sys
from pathlib import Path

from calm_megatron.config.errors import UserError, run_command_line
from calm_megatron.data.arguments import add_corpus_arguments, open_reader


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FOLDER", help="config, weights and tokenizer of the model")
    add_corpus_arguments(parser)
    add("--output", type=Path, required=True, metavar="FILE", help="the score, as JSON")
    add("--context-length", type=int, default=256, metavar="T", help="tokens of a piece of text (default: 256)")
    add("--places", type=int, default=8, metavar="W", help="places a piece (default: 8)")
    add("--max-documents", type=int, metavar="N", help="read the first N documents only")
    add("--batch-size", type=int, default=32, metavar="B", help="contexts at once (default: 32)")
    add("--seed", type=int, default=0, help="of places and draws (default: 0)")
    add("--confidence", type=float, default=0.95, help="level of the interval (default: 0.95)")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Refuse numbers that cannot work."""
    for name in ("batch_size", "max_documents"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}", f"--{name.replace('_', '-')}", "give 1 or more")
    if not 0 < arguments.confidence < 1:
        raise UserError(f"confidence is {arguments.confidence}", "--confidence", "give a share, such as 0.95")


def show_progress(done: int, total: int) -> None:
    """A line that is written over, where stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} questions", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main() -> None:
    """Score, write and print."""
    arguments = parse_arguments()
    check(arguments)
    # Heavy imports wait until the command line is known to be good.
    import itertools

    from calm_megatron.config.atomic import demand_writable, write_output
    from calm_megatron.evaluate.huggingface import CausalLM
    from calm_megatron.evaluate.sampler import choose_questions, score_sampler
    from calm_megatron.parallel import cpu_backend

    demand_writable(arguments.output)
    reader = open_reader(arguments)
    model = CausalLM(arguments.model, cpu_backend.device(0))
    documents = itertools.islice(reader, arguments.max_documents)
    questions = choose_questions(
        (model.encode(text) for text in documents), arguments.context_length, arguments.places, arguments.seed
    )
    score = score_sampler(
        model.draw,
        questions,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        confidence=arguments.confidence,
        resume_from=arguments.output.with_name(f"{arguments.output.name}.partial"),
        name=str(arguments.model.resolve()),
        on_progress=show_progress,
    )
    result = {"model": str(arguments.model), **score.as_dict(), "places": score.patches, "pieces": score.sequences}
    write_output(arguments.output, json.dumps(result, indent=2).encode() + b"\n")
    for name, value in result.items():
        print(f"  {name:<14} {value}")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run_command_line(main)
