"""Text in, text out, and files of prompts."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.generate.options import GenerationOptions
from calm_megatron.generate.text import generate_text, read_prompts
from calm_megatron.model.calm import Calm


class Letters:
    """One token a letter, a to k; what a text begins with is decoded in capitals if `capitals`."""

    eod_id, pad_id = 9, 11

    def __init__(self, capitals: bool) -> None:
        self.capitals = capitals

    def encode(self, text: str) -> list[int]:
        """Ids of the letters."""
        return [ord(letter.lower()) - ord("a") for letter in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Letters of the ids."""
        text = "".join(chr(ord("a") + token) for token in ids)
        return text[:1].upper() + text[1:] if self.capitals else text


@pytest.mark.parametrize("capitals", [False, True])
def test_the_text_is_the_continuation_alone(model: Calm, capitals: bool) -> None:
    tokenizer = Letters(capitals)
    options = GenerationOptions(max_new_tokens=8, temperature=0.5, num_samples=30, seed=2)
    for result in generate_text(model, tokenizer, ["abcd", "abcdeb", ""], options):
        new = tokenizer.decode(result.generation.new_ids)
        assert result.text.lower() == new.lower() and new
        assert result.as_dict(options)["text"] == result.text
        assert result.generation.prompt_ids == tokenizer.encode(result.prompt)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two \\n lines\n")
    assert read_prompts(path) == ["one", "  two \n lines"]
    path.write_bytes("one\x0cpage\u2028here\r\ntwo\x85".encode())
    assert read_prompts(path) == ["one\x0cpage\u2028here", "two\x85"]
    path.write_text("\n\n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"gr\xfcn\n")
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 2\)"):
        read_prompts(path)
    with pytest.raises(UserError, match="cannot read the prompts"):
        read_prompts(tmp_path / "missing.txt")
