"""Long texts in pieces that a tokenizer treats exactly as it would the whole.

A pre-tokenizer can stall for minutes on one text of tens of megabytes, so texts are cut first, and the cut must not
show in the ids. Byte-level pre-tokenizers (the patterns of GPT-2, Llama-3 and o200k) never join a letter or digit
with a space that follows it, and look ahead only inside white space, so the place right before such a space is always
a border between their words. A line break is no such place: Llama-3's pattern joins punctuation with the line breaks
behind it.

Tokenizers that put a space of their own before each text (SentencePiece's dummy prefix as a normalizer) may add one
at each cut.
"""

from collections.abc import Iterator

PIECE_CHARACTERS = 100_000


def _cut(text: str, start: int, limit: int) -> int:
    """End of the piece that starts at `start` and is to end at `limit` or a little before.

    In order of preference: before a space behind a letter or digit; before any white space behind something else;
    at `limit`, which may change the ids there, when so long a stretch holds no white space at all.
    """
    place = text.rfind(" ", start + 1, limit)
    while place > start:
        if text[place - 1].isalnum():
            return place
        place = text.rfind(" ", start + 1, place)
    for place in range(limit - 1, start, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return limit


def split_text(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut `text` into pieces of at most `limit` characters that joined give it again; a short text is one piece."""
    start = 0
    while len(text) - start > limit:
        end = _cut(text, start, start + limit)
        yield text[start:end]
        start = end
    yield text[start:]
