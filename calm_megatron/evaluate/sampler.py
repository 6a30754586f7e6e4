"""BrierLM of any language model, given a function that draws two continuations.

    questions = choose_questions(documents, context_length=256, places=8, seed=0)
    score = score_sampler(draw, questions, seed=0)

The function needs no probabilities, only two independent draws of four tokens behind each context. Of what it draws
Brier-n is estimated without bias, see brier.py; the interval counts the pieces of text as the independent units.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.evaluate.brier import ORDERS, BrierAccumulator, BrierScore, brier_terms
from calm_megatron.parallel.random_streams import key

DrawTwo = Callable[[Sequence[Sequence[int]], Sequence[int]], Tensor]
"""(contexts, keys) -> draws (2, R, 4): two independent continuations, in token ids, behind each of R contexts.

All contexts of a call are of one length. A key is a 128-bit number unlike all others: the seed of its context's draws.
Made from it alone, they do not depend on the batch.
"""
OnProgress = Callable[[int, int], None]
"""Told (questions done, questions in all) after each batch."""

_BATCHES_BETWEEN_SAVES: Final = 20


@dataclass(frozen=True)
class Question:
    """What comes next here?"""

    context: tuple[int, ...]
    answer: tuple[int, ...]
    """The four tokens of the text."""
    piece: int
    """Of which piece of text, counted from 0: those of one are not independent of each other."""


def choose_questions(documents: Iterable[Sequence[int]], context_length: int, places: int, seed: int) -> list[Question]:
    """Questions at the same places of every piece of text, in an order in which contexts of one length follow another.

    Documents are cut into pieces of `context_length` tokens and what is left; a question knows the piece up to its
    place. The places are drawn by the seed, one in each of equal parts of a whole piece.

    Args:
        documents: token ids.
        context_length: of a piece; contexts are shorter by four at least.
        places: questions a piece, at most.
        seed: of the places.

    Raises:
        UserError: a setting leaves no question.
    """
    room = context_length - ORDERS
    if room < 1 or places < 1:
        raise UserError(
            f"a piece of {context_length} tokens with {places} places holds no question",
            "context_length and places",
            f"give {ORDERS + 1} or more tokens, and 1 or more places",
        )
    count = min(places, room)
    shares = np.random.default_rng(key(seed, "places")).random(count)
    lengths = sorted({1 + int((part + share) * room / count) for part, share in enumerate(shares)})
    pieces = [ids[at : at + context_length] for ids in documents for at in range(0, len(ids), context_length)]
    questions = [
        Question(tuple(piece[:length]), tuple(piece[length : length + ORDERS]), number)
        for length in lengths
        for number, piece in enumerate(pieces)
        if length + ORDERS <= len(piece)
    ]
    if not questions:
        raise UserError("no text is long enough for a question", "documents", "give more text or a shorter context")
    return questions


def score_sampler(
    draw: DrawTwo,
    questions: Sequence[Question],
    *,
    seed: int,
    batch_size: int = 32,
    confidence: float = 0.95,
    resume_from: Path | None = None,
    name: str = "",
    on_progress: OnProgress | None = None,
) -> BrierScore:
    """Score a sampler; equal arguments give equal scores, also after an interruption and in batches of any size.

    Args:
        draw: the sampler.
        questions: see `choose_questions`.
        seed: of the draws.
        batch_size: contexts of a call, at most.
        confidence: level of the interval.
        resume_from: file of partial sums: written on the way, read when it is there, removed at the end.
        name: what the sampler is; sums of another are not taken up.
        on_progress: told how far it is.

    Raises:
        UserError: there is no question, or the partial sums are of another evaluation.
    """
    sums = BrierAccumulator(1 + max((question.piece for question in questions), default=0))
    partial = _PartialSums(resume_from, _fingerprint(questions, seed, name)) if resume_from else None
    done = partial.load(sums) if partial else 0
    for number, batch in enumerate(_batches(questions[done:], batch_size)):
        keys = [key(seed, "draws", place) for place in range(done, done + len(batch))]
        first_RO, second_RO = draw([question.context for question in batch], keys).cpu()
        target_RO = torch.tensor([question.answer for question in batch])
        sums.add(brier_terms(first_RO, second_RO, target_RO), torch.tensor([question.piece for question in batch]))
        done += len(batch)
        if partial and number % _BATCHES_BETWEEN_SAVES == 0:
            partial.save(sums, done)
        if on_progress:
            on_progress(done, len(questions))
    score = sums.score(confidence)
    if resume_from:
        resume_from.unlink(missing_ok=True)
    return score


def _batches(questions: Sequence[Question], batch_size: int) -> Iterable[Sequence[Question]]:
    """Runs of contexts of one length."""
    start = 0
    while start < len(questions):
        length, stop = len(questions[start].context), start + 1
        while stop < min(len(questions), start + batch_size) and len(questions[stop].context) == length:
            stop += 1
        yield questions[start:stop]
        start = stop


def _fingerprint(questions: Sequence[Question], seed: int, name: str) -> str:
    digest = hashlib.sha256(repr((name, seed)).encode())
    for question in questions:
        digest.update(repr((question.context, question.answer, question.piece)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _PartialSums:
    """The sums so far on disk. They are whole numbers, so that going on from them changes nothing."""

    path: Path
    fingerprint: str

    def load(self, sums: BrierAccumulator) -> int:
        """Take them up; returns how many questions they hold."""
        if not self.path.exists():
            return 0
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            matches, done, state = found["fingerprint"] == self.fingerprint, int(found["done"]), found["state"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"the partial sums cannot be read: {error}", str(self.path), "delete the file") from None
        if not matches:
            raise UserError(
                "the partial sums are of another model, text or setting",
                str(self.path),
                "delete the file to start anew, or go on with the settings that it was written with",
            )
        sums.state_SC += torch.tensor(state, dtype=torch.float64)
        return done

    def save(self, sums: BrierAccumulator, done: int) -> None:
        """Write them, whole or not at all."""
        content = {"fingerprint": self.fingerprint, "done": done, "state": sums.state_SC.tolist()}
        write_atomically(self.path, json.dumps(content).encode())
