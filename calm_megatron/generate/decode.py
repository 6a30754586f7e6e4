"""From prompts to continuations, patch by patch or token by token, with a key-value cache.

What follows is written for patches; to a token-level model each token is a patch, and no prompt has a remainder.

The model reads whole patches, so a prompt of T tokens gives T // K patches of context and a remainder of r tokens.

- `partial_patch="constrain"`: the remainder is no context but a condition on the patch drawn next. Samples of that
  patch are drawn until some begin with those r tokens, and one of these is taken: the model's own law given the prompt,
  with nothing invented in between. When `max_pools` pools hold no such sample (the model finds the remainder too
  unlikely), one with the longest agreeing beginning is taken and the prompt's tokens are put over it;
  `constrained_fallback` then says so.
  The exact method goes on drawing instead, until samples that begin so agree, or `max_draws` are spent.
- `partial_patch="pad"`: what the official code does. The prompt is filled up with pad tokens, which become context.

The official model has no begin-of-sequence patch and never learns to predict the first patch of a sequence. A prompt
without one whole patch therefore starts from the patch `[eod, pad, ..., pad]`, the way a document ends when its length
is a multiple of K, where documents are filled up to whole patches.

Rows with equally many whole patches of context run as one batch. No row ever sees pads of another, and noise is keyed
by prompt, so batching does not change a result (up to the rounding of batched matrix products).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.generate.draws import Draws, KeyedDraws
from calm_megatron.generate.exact import sample_exactly
from calm_megatron.generate.options import Exponent, GenerationOptions
from calm_megatron.generate.outcomes import NextPatch, NextToken, Outcomes
from calm_megatron.generate.temperature import choose, select
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.attention import KVCache
from calm_megatron.model.calm import Calm


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was drawn for one prompt."""

    prompt_ids: list[int]
    new_ids: list[int]
    """Continuation without the end-of-document token and without pads, cut to `max_new_tokens`."""
    patches: list[list[int]]
    """Every patch drawn, whole; the first one begins with the remainder of the prompt."""
    finish_reason: Literal["eod", "length", "max_draws"]
    """`max_draws`: the exact method found no patch with so many samples, and the text ends before it."""
    constrained_fallback: bool
    """No sample began with the remainder of the prompt; its tokens were put over the nearest one."""


@dataclass
class _Row:
    """A prompt on its way."""

    prompt: int
    context: list[int]
    remainder: list[int]
    steps: int
    """Patches to draw at most."""
    patches: list[list[int]] = field(default_factory=list)
    finished: bool = False
    fallback: bool = False
    exhausted: bool = False


@torch.no_grad()
def generate(
    model: Calm | ArBaseline,
    prompts_ids: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    eod_id: int,
    pad_id: int,
    draws: Draws | None = None,
) -> list[Generation]:
    """Continue each prompt until its end of document or `max_new_tokens`.

    Args:
        model: a trained model in evaluation mode.
        prompts_ids: token ids of any lengths, empty ones too.
        options: how to draw.
        eod_id: token that ends a document, and a continuation.
        pad_id: token that fills patches up; never part of the result.
        draws: source of the randomness; none takes `KeyedDraws` with `options.seed`.

    Returns:
        One result a prompt, in their order.

    Raises:
        UserError: a token id lies outside of the model's vocabulary, or an option does not fit the model.
    """
    _check_ids(model.config.vocab_size, prompts_ids, eod_id, pad_id)
    exponent, draws = options.exponent, draws or KeyedDraws(options.seed)
    outcomes: Outcomes
    if isinstance(model, Calm):
        _check_patches(options)
        outcomes = NextPatch(model, draws, options.sampling_steps)
    else:
        _check_tokens(options)
        by_logits = options.method in (None, "logits")
        outcomes = NextToken(model, draws, exponent.value if by_logits else 1.0)
        exponent = Exponent() if by_logits else exponent
    decoder = _Decoder(outcomes, exponent, options, draws, eod_id, pad_id)
    rows = [decoder.row(prompt, list(ids)) for prompt, ids in enumerate(prompts_ids)]
    by_length: dict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        by_length[len(row.context)].append(row)
    for group in by_length.values():
        for start in range(0, len(group), options.max_batch_size):
            decoder.run(group[start : start + options.max_batch_size])
    return [decoder.result(row, list(ids)) for row, ids in zip(rows, prompts_ids, strict=True)]


def _check_ids(vocab_size: int, prompts_ids: Sequence[Sequence[int]], eod_id: int, pad_id: int) -> None:
    places = {"eod_id": [eod_id], "pad_id": [pad_id]} | {f"prompt {i}": list(ids) for i, ids in enumerate(prompts_ids)}
    for place, ids in places.items():
        wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UserError(
                f"token id {wrong} does not fit the model's vocabulary of {vocab_size}",
                place,
                "use the tokenizer that the model was trained with",
            )


def _check_patches(options: GenerationOptions) -> None:
    if options.method == "logits":
        raise UserError("a CALM has no logits to divide", "method", "use 'batch' or 'exact'")


def _check_tokens(options: GenerationOptions) -> None:
    if options.partial_patch == "pad":
        raise UserError("a token-level model has no patches to fill up", "partial_patch", "leave it out")
    if options.sampling_steps is not None:
        raise UserError("a token-level model draws a token in one step", "sampling_steps", "leave it out")


class _Decoder:
    """The loop over patches for rows of equal context length."""

    def __init__(
        self,
        outcomes: Outcomes,
        exponent: Exponent,
        options: GenerationOptions,
        draws: Draws,
        eod_id: int,
        pad_id: int,
    ) -> None:
        self.outcomes, self.exponent, self.options, self.draws = outcomes, exponent, options, draws
        self.eod_id, self.pad_id = eod_id, pad_id
        self.patch_size, self.device = outcomes.patch_size, outcomes.device

    def row(self, prompt: int, ids: list[int]) -> _Row:
        """Split a prompt into context and remainder."""
        if self.options.partial_patch == "pad":
            ids = ids + [self.pad_id] * (-len(ids) % self.patch_size)
        whole = len(ids) - len(ids) % self.patch_size
        context, remainder = ids[:whole], ids[whole:]
        steps = -(-(len(remainder) + self.options.max_new_tokens) // self.patch_size)
        if not context:
            context = [self.eod_id] + [self.pad_id] * (self.patch_size - 1)
        return _Row(prompt, context, remainder, steps)

    def new_cache(self, batch_size: int, max_patches: int) -> KVCache:
        """An empty cache.

        Raises:
            UserError: there is no memory for it.
        """
        try:
            return self.outcomes.new_cache(batch_size, max_patches)
        except (RuntimeError, TypeError):  # as torch tells of too little memory, and of a size beyond 64 bits
            raise UserError(
                f"there is no memory for the keys and values of {batch_size} x {max_patches:,} "
                f"{'tokens' if self.patch_size == 1 else 'patches'}",
                f"max_new_tokens = {self.options.max_new_tokens:,}",
                "lower it",
            ) from None

    def run(self, rows: list[_Row]) -> None:
        """Draw all patches of rows whose contexts are equally long."""
        steps = max(row.steps for row in rows)
        cache = self.new_cache(len(rows), len(rows[0].context) // self.patch_size + steps)
        feed_BT = torch.tensor([row.context for row in rows], device=self.device)
        for step in range(steps):
            hidden_BH = self.outcomes.hidden_states(feed_BT, cache)
            # A row that has ended keeps its place in the cache, but draws no samples any more.
            live = [place for place, row in enumerate(rows) if not row.finished]
            patches = self.draw(hidden_BH[live], [rows[place] for place in live], step)
            feed_BT = torch.full((len(rows), self.patch_size), self.pad_id, device=self.device)
            for place, patch in zip(live, patches, strict=True):
                row = rows[place]
                if patch is None:
                    row.finished = row.exhausted = True
                    continue
                feed_BT[place] = torch.tensor(patch, device=self.device)
                fresh = patch[len(row.remainder) :] if step == 0 else patch
                row.patches.append(patch)
                row.finished = self.eod_id in fresh or len(row.patches) == row.steps
            if all(row.finished for row in rows):
                return

    def draw(self, hidden_RH: Tensor, rows: list[_Row], step: int) -> list[list[int] | None]:
        """Draw the next patch of each row, none where the exact method gives up; first patches begin as they must."""
        remainders = [row.remainder if step == 0 else [] for row in rows]
        if self.options.method == "exact":
            return self.draw_exactly(hidden_RH, rows, remainders, step)
        prompts = [row.prompt for row in rows]
        choice_R = torch.tensor([self.draws.choice(prompt, step) for prompt in prompts], dtype=torch.float64)
        choice_R = choice_R.to(self.device)
        if not any(remainders):
            num_samples = 1 if self.exponent.is_one else self.options.num_samples
            pool = self.outcomes.pool(hidden_RH, prompts, step, 0, num_samples)
            return list(pool.whole(choose(pool.tokens_RNK, self.exponent, choice_R)).tolist())
        pool_RNK, agreed_RN = self.pools(hidden_RH, rows, remainders, step)
        best_R1 = agreed_RN.amax(dim=1, keepdim=True)
        patch_RK = select(pool_RNK, self.exponent, choice_R, agreed_RN == best_R1)
        for place, (row, remainder) in enumerate(zip(rows, remainders, strict=True)):
            row.fallback = row.fallback or int(best_R1[place]) < len(remainder)
            patch_RK[place, : len(remainder)] = torch.tensor(remainder, dtype=patch_RK.dtype)
        return list(patch_RK.tolist())

    def draw_exactly(
        self, hidden_RH: Tensor, rows: list[_Row], remainders: list[list[int]], step: int
    ) -> list[list[int] | None]:
        """The same at the exact temperature, of the law of those patches that begin with the remainder."""

        def draw(places: Sequence[int], attempt: int, count: int) -> list[list[tuple[int, ...] | None]]:
            prompts = [rows[place].prompt for place in places]
            drawn_WNK = self.outcomes.draw(hidden_RH[list(places)], prompts, step, attempt, count)
            return [
                [
                    tuple(patch) if patch[: len(remainders[place])] == remainders[place] else None
                    for patch in drawn_NK.tolist()
                ]
                for place, drawn_NK in zip(places, drawn_WNK, strict=True)
            ]

        def coins(place: int, attempt: int, count: int) -> Sequence[float]:
            return self.draws.coins(rows[place].prompt, step, attempt, count)

        found = sample_exactly(draw, coins, len(rows), self.exponent, self.options.max_draws)
        return [None if sampled.outcome is None else list(sampled.outcome) for sampled in found]

    def pools(
        self, hidden_RH: Tensor, rows: list[_Row], remainders: list[list[int]], step: int
    ) -> tuple[Tensor, Tensor]:
        """Draw one pool a row, again where no sample agrees with the remainder; of several, the best is kept.

        Returns:
            pool_RNK: the tokens of the samples.
            agreed_RN: how many of the remainder's tokens each sample begins with.
        """
        num_samples = self.options.num_samples
        wanted_R = torch.tensor([len(remainder) for remainder in remainders], device=self.device)
        prefix_RK = torch.full((len(rows), self.patch_size), -1, device=self.device)
        for place, remainder in enumerate(remainders):
            prefix_RK[place, : len(remainder)] = torch.tensor(remainder, dtype=torch.int64)
        pool_RNK = torch.empty(len(rows), num_samples, self.patch_size, dtype=torch.int64, device=self.device)
        agreed_RN = torch.full((len(rows), num_samples), -1, device=self.device)
        for attempt in range(self.options.max_pools):
            pending_W = (agreed_RN.amax(dim=1) < wanted_R).nonzero().squeeze(1)
            if not len(pending_W):
                break
            prompts = [rows[place].prompt for place in pending_W.tolist()]
            drawn_WNK = self.outcomes.draw(hidden_RH[pending_W], prompts, step, attempt, num_samples)
            begins_WN = (drawn_WNK == prefix_RK[pending_W].unsqueeze(1)).long().cumprod(dim=-1).sum(dim=-1)
            better_W = begins_WN.amax(dim=1) > agreed_RN[pending_W].amax(dim=1)
            pool_RNK[pending_W[better_W]] = drawn_WNK[better_W]
            agreed_RN[pending_W[better_W]] = begins_WN[better_W]
        return pool_RNK, agreed_RN

    def result(self, row: _Row, prompt_ids: list[int]) -> Generation:
        """Cut what was drawn down to the continuation."""
        drawn = [token for patch in row.patches for token in patch][len(row.remainder) :]
        end = drawn.index(self.eod_id) if self.eod_id in drawn else len(drawn)
        new_ids = [token for token in drawn[: min(end, self.options.max_new_tokens)] if token != self.pad_id]
        finish_reason: Literal["eod", "length", "max_draws"] = "max_draws" if row.exhausted else "length"
        if end < min(len(drawn), self.options.max_new_tokens):
            finish_reason = "eod"
        return Generation(
            prompt_ids=prompt_ids,
            new_ids=new_ids,
            patches=row.patches,
            finish_reason=finish_reason,
            constrained_fallback=row.fallback,
        )
