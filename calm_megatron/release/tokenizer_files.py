"""The tokenizer in a release: as transformers' `AutoTokenizer` reads it, with all ids that the model knows."""

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers

from calm_megatron.checkpoint.official_config import SpecialTokens
from calm_megatron.data.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def demand_whole_tokenizer(folder: Path) -> None:
    """Raise a `UserError` if there is a `tokenizer.json` that cannot be read; one of another kind is nobody's here."""
    if (folder / TOKENIZER_FILE).is_file():
        Tokenizer.load(folder)


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copy the tokenizer's files of a folder, if there are any, and say so."""
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    for file in found:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.name)
    return bool(found)


def special_tokens(folder: Path) -> SpecialTokens:
    """Ids of the special tokens of a run's tokenizer; none where there is no tokenizer."""
    if not (folder / TOKENIZER_FILE).is_file():
        return SpecialTokens()
    found = Tokenizer.load(folder)
    return SpecialTokens(found.bos_id, found.eod_id, found.pad_id)


def write_tokenizer(folder: Path, target: Path, verbatim: bool) -> None:
    """Copy the files of a run's tokenizer, if it has one.

    Args:
        folder: of the tokenizer.
        target: of the release.
        verbatim: leave them as they are; else a pad token that was appended when the data was made stands in them, and
            the names of the special tokens, and they are such that older releases of transformers read them.
    """
    if not copy_tokenizer(folder, target) or verbatim or not (folder / TOKENIZER_FILE).is_file():
        return
    ours = Tokenizer.load(folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    file = target / TOKENIZER_CONFIG_FILE
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    pad = ours.decode([ours.pad_id])
    if backend.token_to_id(pad) is None:
        backend.add_special_tokens([pad])
    content = _readable_by_old_ones(json.loads(backend.to_str()))
    (target / TOKENIZER_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    config |= {"eos_token": ours.decode([ours.eod_id]), "pad_token": pad}
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])  # older releases add token types
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _readable_by_old_ones(content: dict[str, Any]) -> dict[str, Any]:
    """Merges as lines, which tokenizers below 0.20 demand and newer ones read as well, unless a token has a blank."""
    merges = content["model"].get("merges")
    if merges and not any(isinstance(merge, str) or " " in "".join(merge) for merge in merges):
        content["model"]["merges"] = [" ".join(merge) for merge in merges]
    return content
