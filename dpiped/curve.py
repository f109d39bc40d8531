"""The loss curve of a training, from the bytes of its log. Pure.

Why: a page that shows the loss must not read a log of a million lines to draw a thousand points, and must not
hold all of them either. So the daemon reads each step once, keeps it in arrays, and gives buckets of steps
whose borders stay where they are while the run grows: only the last of them changes.

Exact up to LIMIT points. Beyond that neighbouring points become one, by the same borders that buckets have:
two steps, then four. The lowest, the highest and the mean of a bucket stay right, since one that is asked for
is always wider than what was put together. That is done a part at a time, so that no chunk takes long.

A step far beyond the one before it is taken for a misprint: it would hide all that follow, and put all before
into one bucket.

Known gap: of an unfinished line of more than 64 KiB only the end is looked at. A step that is printed with a
number that is too large by less than LEAP hides all that follow with smaller ones.
"""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import add, lt
from typing import TypeAlias

from msgspec import Struct

from dpiped.progress import CARRY_LIMIT, EPOCH, RESUMED, STEP

LIMIT = 131_072
PIECE = 256 << 10
"""Bytes to be fed at a time where others wait; full of short lines, they take some 10 ms."""
LEAP = 10**9
"""No training prints two steps so far apart."""
EPOCHS_LIMIT = 2048
"""With more than that, every second one is forgotten, and so on."""
PARTS = 8
"""Into so many parts the points are divided that are put together at a time."""

Bucket: TypeAlias = tuple[int, int, float | None, float | None, float | None]
"""First and last step printed; mean, lowest and highest of the finite losses, None where there is none."""


class Part(Struct, frozen=True):
    """Buckets of `width` steps, a power of two; those without a step are left out. `whole`: these are all."""

    width: int
    whole: bool
    buckets: tuple[Bucket, ...]


class Curve:
    """Feed it the log from its first byte on; `series` at any time. `limit` is at least 32."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._carry = b""
        # One entry per point, in columns: the losses of a point are summed up, the finite ones.
        self._firsts = array("q")
        self._lasts = array("q")
        self._counts = array("q")
        self._sums = array("d")
        self._lows = array("d")
        self._highs = array("d")
        self._level = 0
        """Points are being put together that have the same (step - 1) >> level."""
        self._merged = 0
        """So many points, from the first on, are. If there are no others, the next round begins."""
        self._next_epoch: int | None = 1
        """Begins with the next step."""
        self._every = 1
        self._begun = 0
        """So many epochs have, those forgotten included."""
        self._epochs: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._lasts)

    @property
    def first(self) -> int | None:
        """The first step printed."""
        return self._firsts[0] if self._firsts else None

    @property
    def last(self) -> int | None:
        """The last step printed."""
        return self._lasts[-1] if self._lasts else None

    @property
    def epochs(self) -> tuple[tuple[int, int], ...]:
        """(epoch, the first step printed in it)"""
        return tuple(self._epochs)

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the log, cut anywhere."""
        text = self._carry + chunk
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        self._carry = text[end:][-CARRY_LIMIT:]
        self._read(text, end)
        # A chunk of short lines can bring more than one part of the points puts together.
        while len(self) > self._limit:
            self._put_together()

    def finish(self) -> None:
        """Takes the unfinished last line for finished: nothing more will come."""
        text, self._carry = self._carry, b""
        self._read(text, len(text))

    def series(self, points: int, width: int | None, after: int | None) -> Part:
        """At most `points` buckets; if the caller has that `width`, from that one on which holds `after`."""
        now = self._width(points)
        start = 0
        if after is not None and width == now:
            start = bisect_left(self._lasts, (after - 1) // now * now + 1)
        return Part(now, start == 0, tuple(self._buckets(now, start)))

    def _width(self, points: int) -> int:
        width = 1
        if self._lasts:
            first, last = self._firsts[0] - 1, self._lasts[-1] - 1
            while last // width - first // width >= points:
                width *= 2
        return width

    def _buckets(self, width: int, start: int) -> Iterator[Bucket]:
        firsts, lasts, counts = self._firsts, self._lasts, self._counts
        sums, lows, highs = self._sums, self._lows, self._highs
        while start < len(lasts):
            end = bisect_right(lasts, ((lasts[start] - 1) // width + 1) * width, start)
            count = sum(counts[start:end])
            first, last = firsts[start], lasts[end - 1]
            if count:
                low, high = min(lows[start:end]), max(highs[start:end])
                mean = sum(sums[start:end]) / count
                # Finite losses may have a sum that is not; and three times 0.1 is more than 0.3.
                yield first, last, min(max(mean, low), high) if math.isfinite(mean) else None, low, high
            else:
                yield first, last, None, None, None
            start = end

    def _read(self, text: bytes, end: int) -> None:
        """Steps and epochs of `text` up to `end`, in their order."""
        marks: list[tuple[int, int]] = []
        for needle, pattern in ((b"Started new epoch: ", EPOCH), (b"Resuming at epoch: ", RESUMED)):
            if text.find(needle, 0, end) >= 0:
                marks += [(found.start(), int(found[1])) for found in pattern.finditer(text, 0, end)]
        begin = 0
        for at, epoch in sorted(marks):
            self._add(STEP.findall(text, begin, at))
            self._next_epoch = epoch
            begin = at
        self._add(STEP.findall(text, begin, end))

    def _add(self, found: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
        if not found:
            return
        numbers, texts, _, _ = zip(*found, strict=True)
        steps = array("q", map(int, numbers))
        losses = _losses(texts)
        last = self._lasts[-1] if self._lasts else 0
        if steps[0] <= last or steps[-1] > last + LEAP or not all(map(lt, steps, steps[1:])):
            steps, losses = _growing(steps, losses, last)
        if not steps:
            return
        if self._next_epoch is not None:
            self._begin_epoch(self._next_epoch, steps[0])
            self._next_epoch = None
        self._firsts.extend(steps)
        self._lasts.extend(steps)
        finite = array("q", map(math.isfinite, losses))
        self._counts.extend(finite)
        if all(finite):
            self._sums.extend(losses)
            self._lows.extend(losses)
            self._highs.extend(losses)
        else:
            self._sums.extend(loss if math.isfinite(loss) else 0.0 for loss in losses)
            self._lows.extend(loss if math.isfinite(loss) else math.inf for loss in losses)
            self._highs.extend(loss if math.isfinite(loss) else -math.inf for loss in losses)

    def _begin_epoch(self, epoch: int, step: int) -> None:
        if self._begun % self._every == 0:
            self._epochs.append((epoch, step))
        self._begun += 1
        if len(self._epochs) > EPOCHS_LIMIT:
            self._every *= 2
            del self._epochs[1::2]

    def _put_together(self) -> None:
        """One part of the points; what was added since is finer than the rest, which does no harm."""
        if not self._level or self._merged >= len(self):
            # So that at most three quarters are left. A bucket of 5000 is wider still.
            span = self._lasts[-1] - self._firsts[0]
            self._level, self._merged = (4 * span // (3 * self._limit)).bit_length(), 0
        begin = self._merged
        if begin and self._key(begin - 1) == self._key(begin):
            # The bucket of the part before goes on.
            begin -= 1
        end = min(begin + self._limit // PARTS, len(self))
        keys = [(step - 1) >> self._level for step in self._lasts[begin:end]]
        edges = [begin + at for at in range(1, len(keys)) if keys[at] != keys[at - 1]]
        self._merged = begin + len(edges) + 1
        if edges == list(range(begin + 2, end, 2)) and (end - begin) % 2 == 0:
            self._put_pairs_together(begin, end)
        elif self._merged < end:
            self._put_spans_together(begin, end, edges)

    def _key(self, point: int) -> int:
        return (self._lasts[point] - 1) >> self._level

    def _put_pairs_together(self, begin: int, end: int) -> None:
        """Each point with the next: what nearly always is to be done, without a loop in Python."""
        one, other = slice(begin, end, 2), slice(begin + 1, end, 2)
        self._firsts[begin:end] = self._firsts[one]
        self._lasts[begin:end] = self._lasts[other]
        self._counts[begin:end] = array("q", map(add, self._counts[one], self._counts[other]))
        self._sums[begin:end] = array("d", map(add, self._sums[one], self._sums[other]))
        self._lows[begin:end] = array("d", map(min, self._lows[one], self._lows[other]))
        self._highs[begin:end] = array("d", map(max, self._highs[one], self._highs[other]))

    def _put_spans_together(self, begin: int, end: int, edges: list[int]) -> None:
        """The same for buckets of any number of points; they begin at `begin` and at each of `edges`."""
        spans = list(map(slice, [begin, *edges], [*edges, end]))
        self._firsts[begin:end] = array("q", [self._firsts[span.start] for span in spans])
        self._lasts[begin:end] = array("q", [self._lasts[span.stop - 1] for span in spans])
        self._counts[begin:end] = array("q", [sum(self._counts[span]) for span in spans])
        self._sums[begin:end] = array("d", [sum(self._sums[span]) for span in spans])
        self._lows[begin:end] = array("d", [min(self._lows[span]) for span in spans])
        self._highs[begin:end] = array("d", [max(self._highs[span]) for span in spans])


def _losses(texts: tuple[bytes, ...]) -> "array[float]":
    """What is no number counts as none, like nan."""
    try:
        return array("d", map(float, texts))
    except ValueError:
        return array("d", map(_number, texts))


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _growing(steps: "array[int]", losses: "array[float]", last: int) -> "tuple[array[int], array[float]]":
    """Without the steps that are not larger than the last one before them, or too much so."""
    kept, values = array("q"), array("d")
    for step, loss in zip(steps, losses, strict=True):
        if last < step <= last + LEAP:
            kept.append(step)
            values.append(loss)
            last = step
    return kept, values
