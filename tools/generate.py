"""Continue prompts with a trained CALM or token-level baseline.

Example: python tools/generate.py --model runs/demo/calm --prompt "KING LEAR." --temperature 0.5
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from calm_megatron.config.errors import UserError, run_command_line
from calm_megatron.generate.options import GenerationOptions

if TYPE_CHECKING:
    from calm_megatron.generate.text import GeneratedText


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", help="run folder of a CALM or baseline, or one of its checkpoints")
    add("--autoencoder", metavar="RUN", help="of a CALM: where its autoencoder is, if it was moved")
    add("--tokenizer", metavar="PATH", help="tokenizer.json or its folder (default: the one in the run folder)")
    add("--prompt", action="append", default=[], metavar="TEXT", help="text to continue, may be empty; repeat for more")
    add("--prompt-file", type=Path, metavar="FILE", help="one prompt a line; a written \\n is a line break")
    add("--max-new-tokens", type=int, default=256, metavar="T", help="longest continuation (default: 256)")
    add("--temperature", type=float, default=1.0, metavar="X", help="above 0, at most 1 (default: 1)")
    add(
        "--method",
        choices=("batch", "exact", "logits"),
        help="how the temperature is reached: choose from a pool of samples (default of a CALM), draw until samples "
        "agree, or divide the logits (default of a baseline, which has them)",
    )
    add("--num-samples", type=int, metavar="N", help="of --method batch: samples in a pool (default: 200), see docs")
    add("--max-draws", type=int, metavar="N", help="of --method exact: samples a patch at most (default: 100000)")
    add("--sampling-steps", type=int, metavar="S", help="of a diffusion or flow head (default: the model's), see docs")
    add("--seed", type=int, default=0, help="root of all randomness (default: 0)")
    add(
        "--partial-patch",
        choices=("constrain", "pad"),
        default="constrain",
        help="of a CALM: condition the next patch on the prompt tokens behind the last whole patch (default), or fill "
        "them up with pad tokens that become context, as the official code does",
    )
    add("--json", action="store_true", help="print one JSON object a line, with ids")
    add("--output", type=Path, metavar="FILE", help="also write all results as one JSON list")
    arguments = parser.parse_args()
    if not arguments.prompt and arguments.prompt_file is None:
        parser.error("give --prompt or --prompt-file")
    if arguments.num_samples is not None and arguments.method in ("exact", "logits"):
        parser.error(f"--num-samples has no effect with --method {arguments.method}; leave it out")
    if arguments.max_draws is not None and arguments.method != "exact":
        parser.error("--max-draws belongs to --method exact")
    return arguments


def demand_text(prompts: list[str]) -> None:
    """Refuse prompts that were no UTF-8 on the command line; Python keeps such bytes as lone surrogates."""
    for number, prompt in enumerate(prompts, start=1):
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise UserError(f"prompt {number} is not UTF-8", "--prompt", "give it as UTF-8, or in a --prompt-file")


def options_of(arguments: argparse.Namespace) -> GenerationOptions:
    """How to generate; what was not given keeps its default."""
    names = (
        "max_new_tokens", "temperature", "method", "num_samples", "max_draws", "sampling_steps", "seed",
        "partial_patch",
    )  # fmt: skip
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return GenerationOptions(**given)


def show(result: "GeneratedText") -> None:
    """Print prompt and continuation."""
    print(f"{result.prompt}{result.text}")
    if result.generation.constrained_fallback:
        print("[no sample began with the prompt's last tokens; they were put over the nearest one]")
    if result.generation.finish_reason == "max_draws":
        print("[no patch was found within --max-draws samples; the text ends before it]")
    print(f"--- {len(result.generation.new_ids)} tokens, {result.generation.finish_reason}")


def main() -> None:
    """Generate and print."""
    arguments = parse_arguments()
    demand_text(arguments.prompt)
    options = options_of(arguments)
    # Heavy imports wait until the command line is known to be good.
    from calm_megatron.checkpoint.load import demand_tokenizer, find_checkpoint, load_generator
    from calm_megatron.config.atomic import demand_writable, write_output
    from calm_megatron.data.tokenizer import Tokenizer
    from calm_megatron.generate.text import generate_text, read_prompts
    from calm_megatron.parallel.grid import one_rank

    if arguments.output:
        demand_writable(arguments.output)
    prompts = arguments.prompt + (read_prompts(arguments.prompt_file) if arguments.prompt_file else [])
    tokenizer = Tokenizer.load(arguments.tokenizer or find_checkpoint(arguments.model).parent.parent / "tokenizer")
    demand_tokenizer(arguments.model, tokenizer.fingerprint, tokenizer.path)
    with one_rank() as grid:
        model = load_generator(arguments.model, arguments.autoencoder, grid.device)
        results = generate_text(model, tokenizer, prompts, options)
    plain = [result.as_dict(options) for result in results]
    for result, fields in zip(results, plain, strict=True):
        if arguments.json:
            print(json.dumps(fields, ensure_ascii=False))
        else:
            show(result)
    if arguments.output:
        write_output(arguments.output, json.dumps(plain, ensure_ascii=False, indent=1).encode() + b"\n")


if __name__ == "__main__":
    run_command_line(main)
