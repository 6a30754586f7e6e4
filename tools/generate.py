"""Continue prompts with a trained CALM.

Example: python tools/generate.py --model runs/demo/calm --prompt "KING LEAR." --temperature 0.5
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from calm_megatron.config.errors import run_command_line
from calm_megatron.generate.options import GenerationOptions

if TYPE_CHECKING:
    from calm_megatron.generate.text import GeneratedText


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", help="run folder of a CALM, or one of its checkpoints")
    add("--autoencoder", metavar="RUN", help="where the model's autoencoder is, if it was moved")
    add("--tokenizer", metavar="PATH", help="tokenizer.json or its folder (default: the one in the run folder)")
    add("--prompt", action="append", default=[], metavar="TEXT", help="text to continue, may be empty; repeat for more")
    add("--prompt-file", type=Path, metavar="FILE", help="one prompt a line; a written \\n is a line break")
    add("--max-new-tokens", type=int, default=256, metavar="T", help="longest continuation (default: 256)")
    add("--temperature", type=float, default=1.0, metavar="X", help="1, 0.5, 0.333, 0.25, ...: 1/n (default: 1)")
    add("--num-samples", type=int, default=200, metavar="N", help="samples in a pool (default: 200), see docs")
    add("--sampling-steps", type=int, metavar="S", help="of a diffusion or flow head (default: the model's), see docs")
    add("--seed", type=int, default=0, help="root of all randomness (default: 0)")
    add(
        "--partial-patch",
        choices=("constrain", "pad"),
        default="constrain",
        help="prompt tokens behind the last whole patch: condition the next patch on them (default), or fill them up "
        "with pad tokens that become context, as the official code does",
    )
    add("--json", action="store_true", help="print one JSON object a line, with ids")
    add("--output", type=Path, metavar="FILE", help="also write all results as one JSON list")
    arguments = parser.parse_args()
    if not arguments.prompt and arguments.prompt_file is None:
        parser.error("give --prompt or --prompt-file")
    return arguments


def show(result: "GeneratedText") -> None:
    """Print prompt and continuation."""
    print(f"{result.prompt}{result.text}")
    if result.generation.constrained_fallback:
        print("[no sample began with the prompt's last tokens; they were put over the nearest one]")
    print(f"--- {len(result.generation.new_ids)} tokens, {result.generation.finish_reason}")


def main() -> None:
    """Generate and print."""
    arguments = parse_arguments()
    options = GenerationOptions(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        num_samples=arguments.num_samples,
        sampling_steps=arguments.sampling_steps,
        seed=arguments.seed,
        partial_patch=arguments.partial_patch,
    )
    # Heavy imports wait until the command line is known to be good.
    import torch

    from calm_megatron.checkpoint.load import find_checkpoint, load_calm
    from calm_megatron.config.atomic import write_atomically
    from calm_megatron.data.tokenizer import Tokenizer
    from calm_megatron.generate.text import generate_text, read_prompts
    from calm_megatron.parallel.grid import one_rank

    prompts = arguments.prompt + (read_prompts(arguments.prompt_file) if arguments.prompt_file else [])
    tokenizer = Tokenizer.load(arguments.tokenizer or find_checkpoint(arguments.model).parent.parent / "tokenizer")
    with one_rank() as grid:
        model = load_calm(arguments.model, arguments.autoencoder).to(grid.device)
        model.autoencoder.to(grid.device, torch.float32)
        results = generate_text(model, tokenizer, prompts, options)
    plain = [result.as_dict(options) for result in results]
    if arguments.output:
        write_atomically(arguments.output, json.dumps(plain, ensure_ascii=False, indent=1).encode() + b"\n")
    for result, fields in zip(results, plain, strict=True):
        if arguments.json:
            print(json.dumps(fields, ensure_ascii=False))
        else:
            show(result)


if __name__ == "__main__":
    run_command_line(main)
