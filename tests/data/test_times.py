"""Times as logs write them: every form that is read against Python's datetime, and the refusals."""

import datetime
import json
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data.prepare import prepare
from linseqrec.data.readers import LogError
from linseqrec.data.writing import format_card

UTC = datetime.UTC


def seconds(*fields, offset=0):
    """The whole seconds since 1970 of a date and time, by Python's datetime."""
    zone = datetime.timezone(datetime.timedelta(minutes=offset))
    return int(datetime.datetime(*fields, tzinfo=zone).timestamp())


NIGHT = (2024, 1, 31, 23, 59)
ISO = {
    "date": ("2024-02-29", seconds(2024, 2, 29)),
    "no seconds": ("2024-01-31 23:59", seconds(*NIGHT)),
    "no seconds, T, Z": ("2024-01-31T23:59Z", seconds(*NIGHT)),
    "space": ("2024-01-31 23:59:58", seconds(*NIGHT, 58)),
    "T": ("2024-01-31T23:59:58", seconds(*NIGHT, 58)),
    "Z": ("2024-01-31T23:59:58Z", seconds(*NIGHT, 58)),
    "+00:00": ("2024-01-31T23:59:58+00:00", seconds(*NIGHT, 58)),
    "+02:00": ("2024-01-31T23:59:58+02:00", seconds(*NIGHT, 58, offset=120)),
    "-05:30": ("2024-01-31 23:59:58-05:30", seconds(*NIGHT, 58, offset=-330)),
    "+0000": ("2024-01-31T23:59:58+0000", seconds(*NIGHT, 58)),
    "-0330": ("2024-01-31T23:59:58-0330", seconds(*NIGHT, 58, offset=-210)),
    "+02": ("2024-01-31 23:59:58+02", seconds(*NIGHT, 58, offset=120)),
    " +0200": ("2024-01-31 23:59:58 +0200", seconds(*NIGHT, 58, offset=120)),
    " UTC": ("2024-01-31 23:59:58 UTC", seconds(*NIGHT, 58)),
    "1 digit": ("2024-01-31T23:59:58.9Z", seconds(*NIGHT, 58)),
    "3 digits, +02:00": ("2024-01-31T23:59:58.999+02:00", seconds(*NIGHT, 58, offset=120)),
    "6 digits": ("2024-01-31 23:59:58.999999", seconds(*NIGHT, 58)),
    "9 digits, UTC": ("2024-01-31 23:59:58.999999999 UTC", seconds(*NIGHT, 58)),
    "12 digits": ("2024-01-31T23:59:58.999999999999Z", seconds(*NIGHT, 58)),
    "no seconds, offset": ("2024-01-31 23:59+02:00", seconds(*NIGHT, offset=120)),
    "leap day of 2000": ("2000-02-29 12:00", seconds(2000, 2, 29, 12)),
}


@pytest.mark.parametrize("form", ISO)
def test_every_iso_form_gives_the_seconds_of_datetime(tmp_path, form):
    text, expected = ISO[form]
    (tmp_path / "a.csv").write_text(f"user,item,time\nu,i,{text}\n")
    event = {"user": "u", "item": "i", "time": text}
    (tmp_path / "a.json").write_text(json.dumps(event) + "\n")
    pl.DataFrame([event]).write_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.json", "a.parquet"):
        dataset = prepare(tmp_path / name, tmp_path / "sets" / name)
        assert dataset.timestamps.tolist() == [expected], name
        assert dataset.card["reader"]["time_unit"] == "iso"


@settings(max_examples=20, deadline=None)
@given(
    moments=st.lists(
        st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2030, 1, 1)),
        min_size=20,
        max_size=60,
    ),
    offset=st.integers(-12 * 60, 12 * 60),
    digits=st.integers(0, 6),
)
def test_random_moments_give_the_seconds_of_datetime(tmp_path_factory, moments, offset, digits):
    zone = datetime.timezone(datetime.timedelta(minutes=offset))
    texts = []
    for moment in moments:
        fraction = f".{moment.microsecond:06}"[: digits + 1] if digits else ""
        minutes = f"{abs(offset) // 60:02}:{abs(offset) % 60:02}"
        texts.append(f"{moment:%Y-%m-%d %H:%M:%S}{fraction}{'-' if offset < 0 else '+'}{minutes}")
    frame = pl.DataFrame({"user": range(len(texts)), "item": 1, "time": texts})
    dataset = prepare(frame, tmp_path_factory.mktemp("times") / "set")
    by_user = dict(zip(map(int, dataset.user_ids()), dataset.timestamps.tolist(), strict=True))
    for user, moment in enumerate(moments):
        aware = moment.replace(tzinfo=zone, microsecond=0)
        assert by_user[user] == int(aware.timestamp()), texts[user]


@pytest.mark.parametrize("resolution", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_parquet_datetimes_are_instants(tmp_path, resolution, zone):
    moment = datetime.datetime(2024, 1, 31, 23, 59, 58, 999_000, tzinfo=UTC)
    frame = pl.DataFrame({"user": [1], "item": [1], "time": [moment]}).with_columns(
        pl.col("time").dt.convert_time_zone(zone or "UTC").dt.cast_time_unit(resolution)
    )
    if zone is None:
        frame = frame.with_columns(pl.col("time").dt.replace_time_zone(None))
    frame.write_parquet(tmp_path / "a.parquet")
    dataset = prepare(tmp_path / "a.parquet", tmp_path / "set")
    assert dataset.timestamps.tolist() == [seconds(*NIGHT, 58)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_numbers_are_read_in_the_unit_of_their_size(tmp_path, unit):
    """The last tick of each second stays in its second, also where float64 would round it up."""
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    years = [1992, 2001, 2024, 2050]
    times = [seconds(year, 1, 1) * ticks + ticks - 1 for year in years]
    rows = [
        {"user": 1, "item": year, "time": time} for year, time in zip(years, times, strict=True)
    ]
    lines = [f"1,{row['item']},{row['time']}" for row in rows]
    (tmp_path / "a.csv").write_text("\n".join(["user,item,time", *lines, ""]))
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.json", "a.parquet"):
        for given_unit in (None, unit):
            folder = tmp_path / "sets" / f"{name} {given_unit}"
            dataset = prepare(tmp_path / name, folder, time_unit=given_unit)
            assert dataset.timestamps.tolist() == [seconds(year, 1, 1) for year in years], name
            assert dataset.card["reader"]["time_unit"] == unit


DAY = "looks like the calendar date 2024-01-31 written as a number. Write it as ISO 8601"
NOT_PLAUSIBLE = "is not between 1990 and 2099 in seconds, milliseconds, microseconds or nanosec"
# The times of a log, the wrong row, and the error message after "the time VALUE".
NUMBERS = {
    "month": ([202401, 202312], 0, "looks like the calendar date 2024-01-01 written as a number"),
    "day": ([20240131, 20240201], 0, DAY),
    "mostly days": ([0, 20240131, 20240201], 1, DAY),
    "hour": ([2024013123, 2024020100], 0, "looks like the calendar date 2024-01-31 23:00:00"),
    "minute": ([202401312359], 0, "looks like the calendar date 2024-01-31 23:59:00"),
    "second": ([20240131235959], 0, "looks like the calendar date 2024-01-31 23:59:59"),
    "millisecond": ([20240131235959250], 0, "looks like the calendar date 2024-01-31 23:59:59.25"),
    ".NET": (
        [638423423990000000],
        0,
        "looks like .NET ticks. For seconds since 1970, divide by 10000000 and subtract 621355",
    ),
    "Windows": (
        [133512191990000000],
        0,
        "looks like Windows file time. For seconds since 1970, divide by 10000000",
    ),
    "1601": ([13351219199000000], 0, "looks like microseconds since 1601. For seconds since 1970"),
    "Excel": (
        [45322.75, 45323],
        0,
        "looks like an Excel date. For seconds since 1970, subtract 25569 and multiply by 86400",
    ),
    "after 2099": ([1700000000, 5000000000], 1, NOT_PLAUSIBLE),
    "ticks of 100 ns": ([17067455990000000], 0, NOT_PLAUSIBLE),
    "picoseconds": ([17e20], 0, NOT_PLAUSIBLE),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_are_no_times_are_refused(tmp_path, case):
    times, row, message = NUMBERS[case]
    lines = [f"u,i,{time}" for time in times]
    (tmp_path / "a.csv").write_text("\n".join(["user,item,time", *lines, ""]))
    start = f"a.csv, line {row + 2}: the time {times[row]} "
    with pytest.raises(LogError, match=re.escape(message)) as caught:
        prepare(tmp_path / "a.csv", tmp_path / "set")
    assert start in str(caught.value)
    frame = pl.DataFrame({"user": 1, "item": 1, "time": times})
    with pytest.raises(LogError, match=rf"row {row}: .*{re.escape(message)}"):
        prepare(frame, tmp_path / "set")
    # A format with a unit refuses them as well.
    lines = [f"1,2,3,{time}" for time in times]
    (tmp_path / "b.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines, ""]))
    with pytest.raises(LogError, match=re.escape(message)):
        prepare(tmp_path / "b.csv", tmp_path / "set")


@pytest.mark.parametrize("case", ["month", "day", "hour", "Excel"])
def test_a_named_unit_is_taken_at_its_word(tmp_path, case):
    times = NUMBERS[case][0]
    frame = pl.DataFrame({"user": 1, "item": 1, "time": times})
    dataset = prepare(frame, tmp_path / "set", time_unit="s")
    assert dataset.timestamps.tolist() == sorted(int(time) for time in times)


# Times that count from another zero than 1970.
CLOCKS = {
    "positions": (list(range(8)), None),
    "seconds of a day": (list(range(0, 86_400, 1_000)), None),
    "minutes as seconds of a year": (list(range(60, 27_506_100, 99_960)), None),
    "milliseconds of a year": (list(range(0, 31_536_000_000, 10**9)), "ms"),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_clocks_without_dates_stay_usable(tmp_path, case):
    times, unit = CLOCKS[case]
    frame = pl.DataFrame({"user": 1, "item": 1, "time": times})
    dataset = prepare(frame, tmp_path / "set", time_unit=unit)
    ticks = 1000 if unit == "ms" else 1
    assert dataset.timestamps.tolist() == [time // ticks for time in times]


def test_the_unit_is_that_of_the_whole_column(tmp_path):
    """A time of 1980 in milliseconds would, alone, be seconds of the year 11953."""
    times = [seconds(1980, 1, 1) * 1000, seconds(2020, 1, 1) * 1000]
    dataset = prepare(pl.DataFrame({"user": 1, "item": 1, "time": times}), tmp_path / "set")
    assert dataset.timestamps.tolist() == [seconds(1980, 1, 1), seconds(2020, 1, 1)]


# The times of a log, its arguments, and the error message.
TEXTS = {
    "29 February 2023": (
        ["2023-02-29"],
        {},
        "line 2: the time '2023-02-29' cannot be read. A time",
    ),
    "29 February 1900": (["1900-02-29"], {}, "line 2: the time '1900-02-29' cannot be read"),
    "31 April": (["2024-04-31"], {}, "line 2: the time '2024-04-31' cannot be read"),
    "24 hours": (["2024-01-31 24:00"], {}, "line 2: the time '2024-01-31 24:00' cannot be read"),
    "zone name": (
        ["2024-01-31", "2024-01-31 23:59 CET"],
        {},
        "line 3: the time '2024-01-31 23:59 CET' cannot be read. A time is a number of seconds, "
        "milliseconds, microseconds or nanoseconds since 1970, or ISO 8601 text: 2024-01-31, "
        "2024-01-31 23:59 or 2024-01-31T23:59:59.25",
    ),
    "American": (["1/31/2024"], {}, "line 2: the time '1/31/2024' cannot be read. A time is a num"),
    "other digits": (["２０２４-01-31"], {}, "line 2: the time '２０２４-01-31' cannot be read"),
    "before 1970": (
        ["1969-12-31"],
        {},
        "line 2: the time '1969-12-31' is negative, or before 1970",
    ),
    "number after text": (
        ["2024-01-31", "1700000000"],
        {},
        "line 3: the time 1700000000 is a number, but the log's times are read as ISO 8601 text",
    ),
    "text after numbers": (
        ["1700000000", "2024-01-31"],
        {},
        "line 3: the time '2024-01-31' is ISO 8601 text, but the log's times are numbers",
    ),
    "text for a unit": (
        ["2024-01-31"],
        {"time_unit": "ms"},
        "line 2: the time '2024-01-31' is ISO 8601 text, but the log's times are numbers. Write "
        "all times in one form, or set --time_unit=iso",
    ),
    "microseconds for milliseconds": (
        ["1700000000000000"],
        {"time_unit": "ms"},
        "line 2: the time 1700000000000000 reads as microseconds, but the time unit is ms "
        "(milliseconds). Set --time_unit=us",
    ),
    "missing": (["2024-01-31", ""], {}, "line 3: the time is missing."),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_that_is_no_time_is_refused_with_the_forms(tmp_path, case):
    times, arguments, message = TEXTS[case]
    lines = [f"u,i,{time}" for time in times]
    (tmp_path / "a.csv").write_text("\n".join(["user,item,time", *lines, ""]))
    with pytest.raises(LogError, match=re.escape(message)):
        prepare(tmp_path / "a.csv", tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_the_unit_of_a_format_is_checked_against_the_times(tmp_path):
    """Seconds in a format of milliseconds would otherwise be read as days of January 1970."""
    (tmp_path / "a.csv").write_text("user_id,video_id,time_ms\n0,1,1649400000\n")
    message = "the time 1649400000 reads as seconds, but the time unit is ms .*Set --time_unit=s"
    with pytest.raises(LogError, match=message):
        prepare(tmp_path / "a.csv", tmp_path / "set")
    dataset = prepare(tmp_path / "a.csv", tmp_path / "set", time_unit="s")
    assert dataset.timestamps.tolist() == [1649400000]
    (tmp_path / "a.csv").write_text("user_id,video_id,time_ms\n0,1,0\n0,1,90500\n")
    assert prepare(tmp_path / "a.csv", tmp_path / "clock").timestamps.tolist() == [0, 90]


def test_a_missing_first_time_does_not_decide_the_form(tmp_path):
    """Without the second line's form, the message would ask for a number there."""
    (tmp_path / "a.csv").write_text("user,item,time\nu,i,\nu,j,2024-01-31\n")
    event = '{"user": "u", "item": "i", "time": '
    (tmp_path / "a.json").write_text(event + "null}\n" + event + '"2024-01-31"}\n')
    for name, line in (("a.csv", 2), ("a.json", 1)):
        with pytest.raises(LogError, match=f"line {line}: the time is missing"):
            prepare(tmp_path / name, tmp_path / "set")


def test_a_column_of_numbers_is_not_iso(tmp_path):
    frame = pl.DataFrame({"user": [1], "item": [1], "time": [1_700_000_000]})
    with pytest.raises(LogError, match="column 'time' holds Int64: it must hold dates. A time is"):
        prepare(frame, tmp_path / "set", time_unit="iso")


def test_the_card_shows_the_span_as_dates(tmp_path):
    frame = pl.DataFrame({"user": 1, "item": 1, "time": [1706745598, 1709164800]})
    card = prepare(frame, tmp_path / "set").card
    assert card["time"]["utc"] == ["2024-01-31 23:59:58", "2024-02-29 00:00:00"]
    (line,) = [line for line in format_card(card).splitlines() if line.startswith("time ")]
    assert "2024-01-31 23:59:58 to 2024-02-29 00:00:00 UTC (" in line
