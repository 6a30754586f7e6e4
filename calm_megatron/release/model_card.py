"""The model card of a release: README.md as the hub of Hugging Face reads it, filled from what the run left."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import to_yaml
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.data.corpus_facts import read_facts

_UNKNOWN = "not known"
_FOLDERS = re.compile(r"(?<![\w.:/~-])/(?:[^\s/'\"`]+/)+(?=[^\s/'\"`])")
"""What leads to a file on this machine: nobody else's business. Addresses and relative paths stay."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card is made of."""

    run: RunConfig
    checkpoint: Path
    parameters: dict[str, int]
    """By part of the model."""
    license: str
    proof: str
    """What the comparison of both sides found."""


def model_card(card: Card) -> str:
    """The text, in which files of this machine go by their names alone."""
    return _FOLDERS.sub("", "\n".join(_lines(card)) + "\n")


def _lines(card: Card) -> Iterator[str]:
    kind = card.run.model.type
    yield from ("---", f"license: {card.license}", "library_name: transformers")
    if kind != "autoencoder":
        yield "pipeline_tag: text-generation"
    yield from ("tags:", "- calm" if kind != "ar" else "- llama", "---", "")
    yield from (f"# {_title(card.run)}", "", _WHAT[kind], "")
    yield from ("| | |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in _facts(card))
    yield from ("", "## Use", "", "```python", *_use(kind), "```", "")
    yield from ("## How it was made", "", "By calm_megatron. All settings of the run:", "")
    yield from ("```yaml", to_yaml(card.run).rstrip(), "```", "")
    yield from ("The files were compared with the checkpoint that they were made of, on the same input and noise:", "")
    yield card.proof


_WHAT = {
    "autoencoder": "The autoencoder of a continuous autoregressive language model (CALM, arXiv 2510.27688): it packs K "
    "tokens into one vector and unpacks them.",
    "calm": "A continuous autoregressive language model (CALM, arXiv 2510.27688): it predicts one vector a step, which "
    "stands for K tokens. It has no token probabilities and so no perplexity; it is scored by BrierLM.",
    "ar": "A token-level language model of Llama's architecture, trained as the baseline of a continuous "
    "autoregressive language model (CALM, arXiv 2510.27688).",
}


def _title(run: RunConfig) -> str:
    return Path(run.run.directory).name or run.model.type


def _use(kind: str) -> Iterator[str]:
    if kind == "autoencoder":
        yield "from transformers import AutoModel"
        yield ""
        yield 'autoencoder = AutoModel.from_pretrained("this/folder", trust_remote_code=True)'
        yield "mean, log_std = autoencoder.encode(ids)  # ids: (patches, K)"
        yield "ids = autoencoder.logits(mean).argmax(-1)"
        return
    trust = "" if kind == "ar" else ", trust_remote_code=True"
    length = "max_new_tokens=200, do_sample=True" if kind == "ar" else "max_length=200, temperature=0.5"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'tokenizer = AutoTokenizer.from_pretrained("this/folder")'
    yield f'model = AutoModelForCausalLM.from_pretrained("this/folder"{trust})'
    yield 'ids = tokenizer("Once upon a time", return_tensors="pt").input_ids'
    yield f"print(tokenizer.decode(model.generate(ids, {length})[0]))"


def _facts(card: Card) -> Iterator[tuple[str, str]]:
    model = card.run.model
    for name, count in card.parameters.items():
        yield f"parameters of the {name}", f"{count:,}"
    if not isinstance(model, AutoencoderConfig):
        yield "layers, width", f"{model.num_layers}, {model.hidden_size}"
    if isinstance(model, CalmConfig):
        yield "head", model.head.type
    if model.patch_size > 1:
        yield "K, tokens of a patch", str(model.patch_size)
    yield "vocabulary", f"{model.vocab_size:,}"
    yield from _training(card)
    yield from _scores(card.checkpoint.parent.parent / "evaluation.json")


def _training(card: Card) -> Iterator[tuple[str, str]]:
    progress = Progress.load(card.checkpoint / "progress.json")
    if not progress.step:
        yield "training", f"{_UNKNOWN}: the weights were taken in from another place"
        return
    data = card.run.data
    paths = data.data_path or data.train_data_path
    yield "training steps", f"{progress.step:,}"
    yield "tokens seen", f"{progress.consumed_tokens:,}"
    if paths:
        yield "training data", "; ".join(_data(prefix) for prefix in ([paths] if isinstance(paths, str) else paths))
    else:
        yield "training data", f"tar shards `{data.train_shards}`" if data.train_shards else _UNKNOWN
    if card.run.checkpoint.pretrained_checkpoint:
        yield "started from the weights of", f"`{card.run.checkpoint.pretrained_checkpoint}`"


def _data(path: str) -> str:
    prefix = Path(path)
    try:
        facts = read_facts(prefix)
    except UserError:
        return f"`{prefix.name}` (its facts are {_UNKNOWN})"
    sources = ", ".join(f"`{Path(source).name}`" for source in facts.sources)
    return f"`{prefix.name}`: {facts.documents:,} documents, {facts.tokens:,} tokens, from {sources}"


def _scores(file: Path) -> Iterator[tuple[str, str]]:
    """Of the run's last evaluation."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    where = f"split {found.get('split', _UNKNOWN)}, step {found.get('step', _UNKNOWN)}"
    if found.get("brierlm") is not None:
        low, high = found["brierlm_low"], found["brierlm_high"]
        known = f"{found.get('confidence', 0.95):.0%} interval {low:.2f} to {high:.2f}; " if low is not None else ""
        yield "BrierLM", f"{found['brierlm']:.2f} ({known}{where})"
    elif found.get("task") in ("calm", "ar") or not found:
        yield "BrierLM", "not evaluated"
    if found.get("token_accuracy_sample") is not None:
        yield "token accuracy, posterior sample", f"{found['token_accuracy_sample']:.4%} ({where})"
