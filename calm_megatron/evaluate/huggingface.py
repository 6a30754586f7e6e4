"""A causal language model in a Hugging Face directory as a sampler for BrierLM.

`transformers` is no requirement of this package; it is looked for when a model is opened.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.evaluate.brier import ORDERS
from calm_megatron.model.softmax import tokens_of


class CausalLM:
    """Draws from the softmax of the model, at temperature 1, nothing cut off.

    Args:
        path: folder with config, weights and tokenizer.
        device: where to compute.

    Raises:
        UserError: `transformers` is missing, or cannot open the folder.
    """

    def __init__(self, path: str | Path, device: torch.device) -> None:
        try:
            # By name, as this is no requirement: only who scores such a model needs it.
            transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise UserError(
                f"the package transformers cannot be imported: {error}", str(path), "pip install 'calm-megatron[hf]'"
            ) from None
        if not (Path(path) / "config.json").is_file():
            raise UserError("this is no folder of a Hugging Face model: it has no config.json", str(path))
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
            model = transformers.AutoModelForCausalLM.from_pretrained(str(path))
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"transformers cannot open the model: {error}", str(path)) from error
        self._model = model.to(device).eval()
        self._device = device
        begin = self._tokenizer.bos_token_id
        # A tokenizer that puts a begin of sequence before texts does it for the model, so each context gets one, too.
        self._before = [begin] if begin is not None and self._tokenizer("").input_ids[:1] == [begin] else []

    def encode(self, text: str) -> list[int]:
        """Token ids of a document, without special ones."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @torch.no_grad()
    def draw(self, contexts: Sequence[Sequence[int]], keys: Sequence[int]) -> Tensor:
        """Two continuations (2, R, 4) behind each of R contexts of one length."""
        uniform = [np.random.Generator(np.random.SFC64(seed)).random((2, ORDERS)) for seed in keys]
        uniform_O2R = torch.from_numpy(np.stack(uniform)).permute(2, 1, 0).to(self._device)
        ids = torch.tensor([[*self._before, *context] for context in contexts], device=self._device).repeat(2, 1)
        drawn: list[Tensor] = []
        feed, cache = ids, None
        for uniform_2R in uniform_O2R:
            found = self._model(input_ids=feed, past_key_values=cache, use_cache=True)
            token_S1 = tokens_of(found.logits[:, -1], uniform_2R.reshape(-1, 1))
            drawn.append(token_S1)
            ids = torch.cat([ids, token_S1], dim=1)
            cache = found.get("past_key_values")
            feed = ids if cache is None else token_S1  # without a cache the whole text is read again
        draws_2RO: Tensor = torch.cat(drawn, dim=1).unflatten(0, (2, len(contexts)))
        return draws_2RO
