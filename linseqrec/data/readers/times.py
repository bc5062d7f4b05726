"""Times as logs write them: ISO 8601 text, the units of numbers, and numbers that are no times."""

import dataclasses
import datetime
import re
from typing import Any

import narwhals as nw

from linseqrec.data.readers.formats import TIME_UNITS

FORMS = (
    "A time is a number of seconds, milliseconds, microseconds or nanoseconds since 1970, or ISO "
    "8601 text: 2024-01-31, 2024-01-31 23:59 or 2024-01-31T23:59:59.25, the latter two also with "
    "Z, UTC or +02:00 at the end. Text without an offset is UTC"
)
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_DATE = (
    r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|[12][0-9]))"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.,][0-9]+)?)?"
_ZONE = r" ?([Zz]|UTC|GMT|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)"
# Captures every form, and dates as 2023-02-29, which `with_microseconds` makes null.
ISO = rf"{_DATE}([Tt ]{_CLOCK}({_ZONE})?)?"
_UTC = ("", "Z", " UTC", "+00:00", "+0000", "+00")

# Plausible times: the years 1990 to 2099, in seconds. The ranges of the units do not overlap.
_FIRST, _LAST = 631_152_000, 4_102_444_800
UNIT_NAMES = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
}
# .NET ticks of the years 1990 to 2099 would be nanoseconds of 1989 and 1990.
_NET_EPOCH, _WINDOWS_EPOCH = 62_135_596_800, 11_644_473_600
_NET_LAST = (_NET_EPOCH + _LAST) * 10_000_000
# Integers from here on are cut to whole microseconds before they become float64, whose rounding
# could otherwise move them to the next second.
_EXACT = 10**17


def with_microseconds(frame: nw.LazyFrame[Any], name: str) -> nw.LazyFrame[Any]:
    """The frame with ISO 8601 text as microseconds since 1970, float64; null for other text.

    The text is taken apart by position, so that every engine gives the same numbers. Fractions are
    cut after the sixth digit. Each step adds columns, because engines compute an expression anew
    for each use.

    Args:
      frame: The frame.
      name: Its column of text.
    """
    names = frame.collect_schema().names()
    text, tail, zone = nw.col(name), nw.col("tail of time"), nw.col("zone of time")
    frame = frame.with_columns(nw.when(text.str.contains(rf"^{ISO}\z")).then(text).alias(name))
    midnight = nw.concat_str(text, nw.lit("T00:00"))
    frame = frame.with_columns(
        nw.when(text.str.len_chars() == 10).then(midnight).otherwise(text).alias(name)
    )
    frame = frame.with_columns(
        _digits(text, 0, 4).alias("year of time"),
        _digits(text, 5, 2).alias("month of time"),
        _digits(text, 8, 2).alias("day of time"),
        (_digits(text, 11, 2) * 60 + _digits(text, 14, 2)).alias("minutes of time"),
        # The seconds, their fraction and the offset; each may be missing.
        text.str.slice(16).alias("tail of time"),
    )
    has_seconds = tail.str.starts_with(":")
    frame = frame.with_columns(
        nw.when(has_seconds)
        .then(tail.str.slice(1, 2))
        .otherwise(nw.lit("0"))
        .cast(nw.Int64())
        .alias("seconds of time"),
        nw.when(has_seconds).then(tail.str.slice(3)).otherwise(tail).alias("tail of time"),
    )
    # Engines skip nulls, so that patterns cost nothing for the most frequent tails and offsets.
    frame = frame.with_columns(nw.when(~tail.is_in(_UTC)).then(tail).alias("tail of time"))
    fraction = tail.str.replace_all(r"^[.,]|[^.,0-9].*$", "")
    frame = frame.with_columns(
        _digits(nw.concat_str(fraction, nw.lit("000000")), 0, 6)
        .fill_null(0)
        .alias("fraction of time"),
        tail.str.replace_all(r"^[.,][0-9]+", "").alias("zone of time"),
    )
    frame = frame.with_columns(nw.when(~zone.is_in(_UTC)).then(zone).alias("zone of time"))
    frame = frame.with_columns(
        nw.concat_str(zone.str.replace_all(r"[^0-9]", ""), nw.lit("0000")).alias("tail of time"),
        nw.when(zone.str.contains("-", literal=True))
        .then(nw.lit(-1))
        .otherwise(nw.lit(1))
        .alias("zone of time"),
    )
    year, month, day = (nw.col(f"{part} of time") for part in ("year", "month", "day"))
    offset = zone * (_digits(tail, 0, 2) * 60 + _digits(tail, 2, 2)).fill_null(0)
    minutes = _days(year, month, day) * 1440 + nw.col("minutes of time") - offset
    seconds = minutes * 60 + nw.col("seconds of time")
    value = seconds * 1_000_000 + nw.col("fraction of time")
    is_leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    exists = (month != 2) | (day != 29) | is_leap
    return frame.with_columns(nw.when(exists).then(value).cast(nw.Float64()).alias(name)).select(
        *names
    )


def _digits(text: nw.Expr, offset: int, length: int) -> nw.Expr:
    return text.str.slice(offset, length).cast(nw.Int64())


def _days(year: nw.Expr, month: nw.Expr, day: nw.Expr) -> nw.Expr:
    """Days from 1970-01-01 in the Gregorian calendar.

    The count starts years in March, so that the leap day is the last day of a year. Source:
    Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
    """
    from_march = (month + 9) % 12
    year = year - nw.when(month <= 2).then(nw.lit(1)).otherwise(nw.lit(0))
    leap_days = year // 4 - year // 100 + year // 400
    return 365 * year + leap_days + (153 * from_march + 2) // 5 + day - 719_469


def whole_microseconds(value: nw.Expr) -> nw.Expr:
    """Integers as float64; nanoseconds cut to microseconds, so that rounding keeps the second."""
    # Not `value // 1000 * 1000`: Spark would divide in float64.
    cut = nw.when(value >= _EXACT).then(value - value % 1000).otherwise(value)
    return cut.cast(nw.Float64())


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    return re.fullmatch(NUMBER, text) is not None


def needs_exact(text: str) -> bool:
    """Whether a text is an integer too large for float64, which needs `whole_microseconds`."""
    return text.isdecimal() and len(text) < 20 and int(text) >= _EXACT


@dataclasses.dataclass(frozen=True)
class Range:
    """The times from `low` up to but not including `high`, in the ticks of any unit.

    Attributes:
      name: A unit, if its times of 1990 to 2099 are in the range; "clock" for smaller numbers,
        which count from another zero or are seconds before 1990; else "below UNIT" or "beyond".
      low: The smallest time.
      high: The first time after the range.
    """

    name: str
    low: float
    high: float

    def contains(self, time: nw.Expr) -> nw.Expr:
        """Whether each time is in the range."""
        return (time >= self.low) & (time < self.high)


def _ranges() -> tuple[Range, ...]:
    ranges, end = [Range("clock", 0, _FIRST)], float(_FIRST)
    for unit in UNIT_NAMES:
        low, high = _FIRST * TIME_UNITS[unit], _LAST * TIME_UNITS[unit]
        if unit == "ns":
            low = _NET_LAST
        if low > end:
            ranges.append(Range(f"below {unit}", end, low))
        ranges.append(Range(unit, low, high))
        end = high
    return (*ranges, Range("beyond", end, float("inf")))


# All times from 0 on, in order.
RANGES = _ranges()


@dataclasses.dataclass(frozen=True)
class LookAlike:
    """Numbers that are in the range of clocks or of seconds, and are something else.

    Attributes:
      low: The smallest number.
      high: The first number after the range.
      share: The share of a log's times from which on they are this.
      digits: "ymd", "ymdh" or "ym" for two digits of each, but four of the year; "" for any number.
    """

    low: int
    high: int
    share: float
    digits: str = ""

    def contains(self, time: nw.Expr) -> nw.Expr:
        """Whether each time looks so."""
        found = (time >= self.low) & (time < self.high)
        number = time
        for part in reversed(self.digits[1:]):
            low, high = {"m": (1, 12), "d": (1, 31), "h": (0, 23)}[part]
            found = found & (number % 100 >= low) & (number % 100 <= high)
            number = number // 100
        return found


# By chance, a clock has at most 12 % of its times at valid months and days. An Excel serial of 1990
# to 2099 may be a clock's time, but a clock that starts at 0 has as many smaller times.
LOOK_ALIKES = (
    LookAlike(199_001, 210_000, 0.5, "ym"),
    LookAlike(19_900_101, 21_000_000, 0.5, "ymd"),
    LookAlike(1_990_010_100, 2_100_000_000, 0.5, "ymdh"),
    LookAlike(32_874, 73_051, 0.9),
)


def describe_implausible(text: str) -> str:
    """What a number that is no plausible time looks like, and what to do.

    Args:
      text: The number.

    Returns:
      A text that continues "the time VALUE".
    """
    number = int(text) if text.isdecimal() else int(float(text))
    for layout in ("%Y%m%d%H%M%S%f", "%Y%m%d%H%M%S", "%Y%m%d%H%M", "%Y%m%d%H", "%Y%m%d", "%Y%m"):
        date = _parse_date(str(number), layout)
        if date is not None:
            return (
                f"looks like the calendar date {date} written as a number. Write it as ISO 8601 or "
                "as seconds since 1970."
            )
    seconds = {
        ".NET ticks. For seconds since 1970, divide by 10000000 and subtract 62135596800.": (
            number / 10**7 - _NET_EPOCH
        ),
        "Windows file time. For seconds since 1970, divide by 10000000 and subtract 11644473600.": (
            number / 10**7 - _WINDOWS_EPOCH
        ),
        "microseconds since 1601. For seconds since 1970, divide by 1000000 and subtract "
        "11644473600.": number / 10**6 - _WINDOWS_EPOCH,
        "an Excel date. For seconds since 1970, subtract 25569 and multiply by 86400.": (
            (float(text) - 25_569) * 86_400
        ),
    }
    for name, since_1970 in seconds.items():
        if _FIRST <= since_1970 < _LAST:
            return f"looks like {name}"
    return (
        "is not between 1990 and 2099 in seconds, milliseconds, microseconds or nanoseconds since "
        "1970. To drop such events, set --time_range=FIRST,END. If the times count from another "
        "zero, set --time_unit."
    )


def _parse_date(digits: str, layout: str) -> str | None:
    lengths = {"%Y%m": 6, "%Y%m%d": 8, "%Y%m%d%H": 10, "%Y%m%d%H%M": 12, "%Y%m%d%H%M%S": 14}
    if len(digits) != lengths.get(layout, 17):
        return None
    try:
        date = datetime.datetime.strptime(digits, layout)
    except ValueError:
        return None
    if not 1990 <= date.year < 2100:
        return None
    return str(date.date() if len(digits) <= 8 else date)


def describe_unread(text: str, unit: str | None) -> str:
    """Why a value is not read as a time, and which forms are.

    Args:
      text: The value as the log writes it.
      unit: The log's time unit, if it is known.

    Returns:
      A text that continues "the time VALUE".
    """
    if unit == "iso" and is_number(text):
        return (
            "is a number, but the log's times are read as ISO 8601 text. Write all times in one "
            "form. If all are numbers in a column of text, cast the column."
        )
    if unit != "iso" and re.fullmatch(ISO, text):
        return (
            "is ISO 8601 text, but the log's times are numbers. Write all times in one form, or "
            "set --time_unit=iso if all are ISO 8601."
        )
    return f"cannot be read. {FORMS}."
