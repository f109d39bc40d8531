"""Captions as token ids: words, with a vocabulary built from the data set's own captions.

Why: a learned text encoder needs no download. The vocabulary travels with every checkpoint and saved
model, because ids mean nothing without it.

A word that no caption held gets one of a few spare ids, by its letters. Nothing is known of it then, but an
adapter can learn it, since it is told apart from other words and always has the same id.

Known gap: two new words may share a spare id; no sub-words.
"""

import re
import zlib
from collections.abc import Iterable, Sequence

PAD, NULL, FIRST_SPARE = 0, 1, 2
SPARE = 32
RESERVED = ("<pad>", "<null>", *(f"<spare {number}>" for number in range(SPARE)))
MIN_TOKENS, MAX_TOKENS = 16, 64
_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(caption: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return _WORD.findall(caption.lower())


def build_vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """All words in order of the alphabet, after the reserved ones: equal captions give equal ids."""
    return RESERVED + tuple(sorted({word for caption in captions for word in split_words(caption)}))


def longest(captions: Iterable[str]) -> int:
    """Tokens of the longest caption, from MIN_TOKENS (room for an adapter's) to MAX_TOKENS."""
    most = max((len(split_words(caption)) for caption in captions), default=0)
    return min(max(most, MIN_TOKENS), MAX_TOKENS)


def spare(word: str) -> int:
    """The id of a word that the vocabulary lacks; the same everywhere and always."""
    return FIRST_SPARE + zlib.crc32(word.encode("utf-8", "surrogatepass")) % SPARE


class Tokenizer:
    """Ids of a fixed length `max_tokens`; longer captions are cut."""

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        self._ids = {word: index for index, word in enumerate(vocabulary)}
        self.max_tokens = max_tokens

    def encode(self, caption: str) -> list[int]:
        """Padded ids; a caption without words is the null caption."""
        words = split_words(caption)[: self.max_tokens]
        ids = [self._ids.get(word, spare(word)) for word in words] or [NULL]
        return ids + [PAD] * (self.max_tokens - len(ids))

    def null(self) -> list[int]:
        """The caption that guidance is measured against."""
        return self.encode("")
