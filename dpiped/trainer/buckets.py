"""Size buckets: which sizes pictures are brought to, and which of them fits a picture best.

Why: a batch holds pictures of one size, and cropping everything to a square cuts off what a caption speaks
of. A bucket has about the area that is asked for and a shape of its own; a picture goes where least of it
is cut off. Pure, so that every rank finds the same.

Known gap: no buckets of several frames; every picture is one frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpiped.trainer.table import ConfigError, Table

Size = tuple[int, int]
"""Width and height in pixels."""
LEAST, MOST = 8, 65536
AR_KEYS = ("ar_buckets", "min_ar", "max_ar", "num_ar_buckets")


@dataclass(frozen=True)
class Buckets:
    """`groups` has one group of sizes for each resolution; a picture goes into one bucket of each group."""

    groups: tuple[tuple[Size, ...], ...]

    def assign(self, width: int, height: int) -> list[Size]:
        """The buckets of a picture of this size: nearest in shape, then in area."""
        return [min(group, key=lambda size: _distance(size, width, height)) for group in self.groups]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All sizes, each once."""
        return tuple(dict.fromkeys(size for group in self.groups for size in group))


def _distance(size: Size, width: int, height: int) -> tuple[float, float]:
    shape = abs(math.log(size[0] / size[1]) - math.log(width / height))
    return round(shape, 9), abs(math.log(size[0] * size[1]) - math.log(width * height))


def of_ratio(area: float, ratio: float, multiple: int) -> Size:
    """The size of about this area and ratio of width to height whose sides are multiples of `multiple`."""
    width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    return tuple(max(round(side / multiple), 1) * multiple for side in (width, height))  # type: ignore[return-value]


@dataclass(frozen=True)
class Asked:
    """What the dataset TOML asks for: sizes as they stand, or areas (as sides of squares) and ratios."""

    sizes: tuple[Size, ...] = ()
    sides: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    """Those of the sides that are meant as they stand."""
    ratios: tuple[float, ...] = ()

    @property
    def largest(self) -> float:
        """Side of a square as large as the largest bucket, in pixels."""
        return max([math.sqrt(w * h) for w, h in self.sizes] + list(self.sides))

    def buckets(self, multiple: int) -> Buckets:
        """The buckets for a model whose patches have `multiple` pixels. Sizes are taken as they are."""
        if self.sizes:
            return Buckets((self.sizes,))
        groups = []
        for side in self.sides:
            sizes = [of_ratio(side * side, ratio, multiple) for ratio in self.ratios]
            groups.append(tuple(dict.fromkeys(sizes)))
        return Buckets(tuple(groups))

    def unfit(self, multiple: int) -> Size | float | None:
        """A size, or the side of a square, that is no multiple of `multiple`; None if there is none."""
        for size in self.sizes:
            if size[0] % multiple or size[1] % multiple:
                return size
        return next((side for side in self.squares if side % multiple), None)


def read(table: Table) -> Asked:
    """The keys that say how large pictures are. Raises ConfigError naming the key."""
    if "size_buckets" in table:
        return Asked(sizes=_size_buckets(table))
    sides, squares = _sides(table)
    if not table.flag("enable_ar_bucket", False):
        for key in AR_KEYS:
            table.raw(key)
        return Asked(sides=sides, squares=squares, ratios=(1.0,))
    ratios = _ratios(table)
    if any(isinstance(ratio, tuple) for ratio in ratios):
        return Asked(sizes=tuple(ratio for ratio in ratios if isinstance(ratio, tuple)))
    return Asked(sides=sides, ratios=tuple(ratio for ratio in ratios if isinstance(ratio, float)))


def _size_buckets(table: Table) -> tuple[Size, ...]:
    takes = f"a list of [width, height, 1] in pixels, from {LEAST} to {MOST}"
    value = table.raw("size_buckets")
    for key in ("resolutions", "enable_ar_bucket", *AR_KEYS):
        table.raw(key)
    if not isinstance(value, list) or not value:
        raise table.refuse("size_buckets", value, takes)
    for entry in value:
        if not _whole(entry, 3) or entry[2] != 1:
            raise table.refuse("size_buckets", value, takes)
    return tuple((width, height) for width, height, _ in value)


def _sides(table: Table) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sides of squares, and those of them that are no pairs; a pair stands for its area."""
    value = table.raw("resolutions")
    takes = f"a list of sides or of [width, height] in pixels, from {LEAST} to {MOST}"
    if not isinstance(value, list) or not value:
        raise table.refuse("resolutions", value, takes)
    sides = []
    for entry in value:
        pair = entry if isinstance(entry, list) else [entry, entry]
        if not _whole(pair, 2):
            raise table.refuse("resolutions", value, takes)
        sides.append(math.sqrt(pair[0] * pair[1]))
    whole = [float(entry) for entry in value if not isinstance(entry, list)]
    return tuple(dict.fromkeys(sides)), tuple(whole)


def _whole(entry: object, count: int) -> bool:
    """Is it a list of so many whole numbers, sides among them (the first two) not too small?"""
    if not isinstance(entry, list) or len(entry) != count:
        return False
    numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in entry)
    return numbers and min(entry[:2]) >= LEAST and max(entry[:2]) <= MOST


def _ratios(table: Table) -> Sequence[float | Size]:
    """`ar_buckets` as they stand, or `num_ar_buckets` ratios from `min_ar` to `max_ar`, evenly in the log."""
    low, high = table.optional_number("min_ar"), table.optional_number("max_ar")
    count = table.optional_integer("num_ar_buckets")
    value = table.raw("ar_buckets")
    if value is None:
        if low is None or high is None or count is None:
            missing = "min_ar" if low is None else "max_ar" if high is None else "num_ar_buckets"
            raise table.refuse(
                missing, None, "a number above 0, as enable_ar_bucket is on without ar_buckets"
            )
        if low < 0.01 or high > 100:
            raise ConfigError(f"{table.name}min_ar and max_ar take numbers from 0.01 to 100")
        if low > high:
            raise table.refuse("min_ar", low, f"at most max_ar ({high:g})")
        steps = [index / max(count - 1, 1) for index in range(count)]
        return [low * (high / low) ** step for step in steps]
    if isinstance(value, list) and value:
        if all(_whole(entry, 2) for entry in value):
            return [(width, height) for width, height in value]
        if all(
            isinstance(entry, int | float) and not isinstance(entry, bool) and 0.01 <= entry <= 100
            for entry in value
        ):
            return [float(entry) for entry in value]
    raise table.refuse(
        "ar_buckets", value, "a list of ratios (from 0.01 to 100), or one of [width, height] in pixels"
    )
