"""From text to text: `generate` between a tokenizer's two directions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from calm_megatron.config.errors import UserError
from calm_megatron.generate.decode import Generation, generate
from calm_megatron.generate.options import GenerationOptions
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.calm import Calm


class TextTokenizer(Protocol):
    """What generation needs of a tokenizer."""

    @property
    def eod_id(self) -> int:
        """Token that ends a document."""
        ...

    @property
    def pad_id(self) -> int:
        """Token that fills patches up."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class GeneratedText:
    """A prompt and its continuation."""

    prompt: str
    text: str
    """The continuation alone."""
    generation: Generation

    def as_dict(self, options: GenerationOptions) -> dict[str, Any]:
        """For JSON: texts, how they were made, and ids."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "temperature": options.temperature,
            "method": options.method,
            "seed": options.seed,
            "finish_reason": self.generation.finish_reason,
            "constrained_fallback": self.generation.constrained_fallback,
            "prompt_ids": self.generation.prompt_ids,
            "new_ids": self.generation.new_ids,
        }


def generate_text(
    model: Calm | ArBaseline, tokenizer: TextTokenizer, prompts: Sequence[str], options: GenerationOptions
) -> list[GeneratedText]:
    """Continue each text; see `generate`.

    Raises:
        UserError: the tokenizer does not fit the model.
    """
    prompts_ids = [tokenizer.encode(prompt) for prompt in prompts]
    generations = generate(model, prompts_ids, options, eod_id=tokenizer.eod_id, pad_id=tokenizer.pad_id)
    return [
        GeneratedText(prompt=prompt, text=_continuation(tokenizer, prompt, result), generation=result)
        for prompt, result in zip(prompts, generations, strict=True)
    ]


def _continuation(tokenizer: TextTokenizer, prompt: str, result: Generation) -> str:
    """The new text, decoded behind the prompt where possible: some tokenizers treat the start of a text apart."""
    whole = tokenizer.decode(result.prompt_ids + result.new_ids)
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(result.new_ids)


def read_prompts(path: Path) -> list[str]:
    r"""Read one prompt a line; a written `\n` stands for a line break within a prompt.

    Raises:
        UserError: the file is missing, not UTF-8, or empty.
    """
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the prompts: {error.strerror}", str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"the prompts are not UTF-8 (byte {error.start})", str(path), "convert the file") from None
    prompts = [line.removesuffix("\r").replace("\\n", "\n") for line in lines if line.strip()]
    if not prompts:
        raise UserError("the file holds no prompt", str(path), "write one prompt a line")
    return prompts
