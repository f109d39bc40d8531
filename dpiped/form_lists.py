"""The form's lists: JSON text or lists in, lists of one type out.

Why: a page has text fields, so lists arrive as JSON text; and train.py's TOML reader can't read a list whose
elements are of different types, such as betas of 1 and 0.99. What can be said in one type is; the rest is
refused at its field.

Known gap: none.
"""

from typing import Any

import msgspec

from dpiped.errors import InvalidForm

LONGEST = 1000
"""Elements of a list."""
_SIDES = "takes a JSON list of whole numbers from 1 on, or of [width, height] pairs, such as [512, 768]"
_RATIOS = "takes a JSON list of numbers above 0, or of [width, height] pairs, such as [0.5, 1.0, 2.0]"
_FRAMES = "takes a JSON list of whole numbers from 1 on, such as [1, 33]"
_LARGEST = 1_000_000
_LARGEST_NUMBER = 1e9


class Findings:
    """Collects what is wrong, one finding per field."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def add(self, field: str, text: str) -> None:
        self._found.setdefault(field, text)

    def finish(self) -> None:
        """Raises InvalidForm if anything was found."""
        if self._found:
            raise InvalidForm(tuple(self._found.items()))


def betas(found: Findings, value: Any, two: bool) -> tuple[float, ...]:
    """As floats. `two`: exactly two, as Adam's family takes them."""
    numbers = _list(value)
    fits = numbers is not None and all(_is_number(each) and 0 <= each <= 1 for each in numbers)
    if not fits or not numbers or (two and len(numbers) != 2):
        found.add("betas", "takes a JSON list of two numbers from 0 to 1, such as [0.9, 0.99]")
        return ()
    # Without the sign of -0.0, which the old reader loses.
    return tuple(abs(float(each)) for each in numbers)


def sizes(found: Findings, value: Any) -> tuple[Any, ...]:
    """Sides, or pairs of width and height."""
    sides = _list(value)
    if not sides or not (all(map(_is_whole, sides)) or all(_is_pair(each, _is_whole) for each in sides)):
        found.add("resolutions_input", _SIDES)
        return ()
    return tuple(sides)


def frames(found: Findings, value: Any) -> tuple[int, ...]:
    counts = _list(value)
    if not counts or not all(map(_is_whole, counts)):
        found.add("frame_buckets", _FRAMES)
        return ()
    return tuple(counts)


def ratios(found: Findings, value: Any) -> tuple[Any, ...] | None:
    """As floats, or pairs of width and height; None where there is nothing, which is not the same as []."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    asked = _list(value)
    if asked is not None and all(_is_number(each) and 0 < each <= 1000 for each in asked):
        return tuple(float(each) for each in asked)
    if asked is not None and all(_is_pair(each, _is_number) for each in asked):
        pairs = [[int(side) for side in each] for each in asked]
        if all(_is_pair(each, _is_whole) for each in pairs) and pairs == [list(each) for each in asked]:
            return tuple(pairs)
    found.add("ar_buckets", _RATIOS)
    return None


def _list(value: Any) -> list[Any] | None:
    """The list that it is, or that its JSON text is; None for anything else."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return None
    return list(value) if isinstance(value, list | tuple) and len(value) <= LONGEST else None


def _is_number(value: Any) -> bool:
    """Not a bool, and neither infinite nor nan, which no comparison holds for."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def _is_pair(value: Any, fits: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(fits, value))
