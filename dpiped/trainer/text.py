"""Captions as token ids: words, with a vocabulary built from the data set's own captions.

Why: a learned text encoder needs no download. The vocabulary travels with every checkpoint and saved
model, because ids mean nothing without it.

Known gap: a word that no caption held is "unknown", whatever it means; no sub-words.
"""

import re
from collections.abc import Iterable, Sequence

PAD, NULL, UNKNOWN = 0, 1, 2
RESERVED = ("<pad>", "<null>", "<unknown>")
MAX_TOKENS = 64
_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(caption: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return _WORD.findall(caption.lower())


def build_vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """All words in order of the alphabet, after the reserved ones: equal captions give equal ids."""
    return RESERVED + tuple(sorted({word for caption in captions for word in split_words(caption)}))


def longest(captions: Iterable[str]) -> int:
    """Tokens of the longest caption, from 1 to MAX_TOKENS."""
    return min(max((len(split_words(caption)) for caption in captions), default=1) or 1, MAX_TOKENS)


class Tokenizer:
    """Ids of a fixed length `max_tokens`; longer captions are cut."""

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        self._ids = {word: index for index, word in enumerate(vocabulary)}
        self.max_tokens = max_tokens

    def encode(self, caption: str) -> list[int]:
        """Padded ids; a caption without words is the null caption."""
        ids = [self._ids.get(word, UNKNOWN) for word in split_words(caption)][: self.max_tokens] or [NULL]
        return ids + [PAD] * (self.max_tokens - len(ids))

    def null(self) -> list[int]:
        """The caption that guidance is measured against."""
        return self.encode("")
