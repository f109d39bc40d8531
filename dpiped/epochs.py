"""How long an epoch is, learnt from the steps that were printed around the beginnings of epochs.

Why: train.py never prints how many steps there are, and a total that is wrong by hours is worse than
none. An epoch is measured between two beginnings in one log; what a resume goes on from may have been
trained with other data, so it counts only until the second beginning.

With `steps_per_print` above 1 the last steps of an epoch are not printed. So a beginning lies between
two steps, the least and the most that it can be, and the length is the most that all of them allow: it
only falls.

Known gap: after a resume with other data, the first length is that of earlier epochs and this one mixed.
"""

from typing import NamedTuple


class _Beginning(NamedTuple):
    """Before its first step, at least `least` and at most `most` steps were done."""

    epoch: int
    least: int
    most: int | None


class Epochs:
    """Told what is printed, in its order. `anew`: a resume begins the data of its epoch again."""

    def __init__(self, anew: bool = False) -> None:
        self._anew = anew
        self._resumed_after = 0
        self._printed: int | None = 0
        """The last step that was printed. None after a resume: it may begin between two that are."""
        self._least = 0
        """So many steps are done for certain."""
        self._every: int | None = None
        self._gap: int | None = None
        """Between the last two steps that were printed: `every`, where that was not told."""
        self._first: _Beginning | None = _Beginning(1, 0, 0)
        self._last: _Beginning | None = self._first
        self._length: int | None = None
        self._guess: int | None = None
        """The length if all earlier epochs, also those of other logs, were alike."""

    @property
    def length(self) -> int | None:
        """The most steps that an epoch can have."""
        return self._length or self._guess

    @property
    def began(self) -> int | None:
        """The most steps that can have been done before the present epoch."""
        return self._last.most if self._last else None

    def every(self, steps: int) -> None:
        """So often a step is printed."""
        self._every = max(steps, 1)

    def printed(self, steps: list[int]) -> None:
        """The steps that were printed in one piece; the last two are enough."""
        if not steps:
            return
        before = steps[-2] if len(steps) > 1 else self._printed
        self._gap = self._gap if before is None else max(steps[-1] - before, 1)
        self._printed = self._least = steps[-1]

    def saved(self, step: int) -> None:
        """A checkpoint tells a step that may not be printed; others may have followed it."""
        self._least = max(self._least, step)

    def resumed(self, epoch: int, after: int) -> None:
        self._resumed_after = self._least = after
        self._printed = self._gap = self._length = self._guess = None
        self._first = self._last = _Beginning(epoch, after, after) if self._anew else None

    def begun(self, epoch: int) -> None:
        """A new epoch has begun."""
        new = _Beginning(epoch, self._least, self._most())
        known = [each for each in (self._first, self._last) if each and each.epoch < epoch]
        for each in known:
            self._measure(each, new)
        ends = [self._end(each, epoch) for each in known]
        most = min((end for end in (new.most, *ends) if end is not None), default=None)
        if len(known) == 2 and (most is None or most >= new.least):
            self._last = new._replace(most=most)
        else:
            # The first one after a resume, or some of the log was lost.
            self._begin_with(new)

    def _most(self) -> int | None:
        """The step before the next one that will be printed."""
        every = self._every or self._gap
        return None if every is None else (self._least // every + 1) * every - 1

    def _measure(self, before: _Beginning, new: _Beginning) -> None:
        if new.most is None:
            return
        longest = (new.most - before.least) // (new.epoch - before.epoch)
        # None is possible only where steps were lost.
        if longest > 0:
            self._length = min(self._length or longest, longest)

    def _end(self, before: _Beginning, epoch: int) -> int | None:
        """The most steps before `epoch`, by the length."""
        if before.most is None or self._length is None:
            return None
        return before.most + (epoch - before.epoch) * self._length

    def _begin_with(self, new: _Beginning) -> None:
        self._first = self._last = new
        self._length = self._guess = None
        if new.most is None or new.epoch < 2:
            return
        guess = new.most // (new.epoch - 1)
        # A resume at an epoch's beginning does one step too many. More than that: the data is other data.
        if guess > 0 and new.least - self._resumed_after <= guess + 1:
            self._guess = guess
