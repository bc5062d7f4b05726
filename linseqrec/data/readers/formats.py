"""The formats of public log files."""

import dataclasses
from collections.abc import Mapping

ROLES = ("user", "item", "timestamp", "rating", "behaviour", "fold", "row")

# Ticks per second of each time unit: seconds to nanoseconds since an epoch; "iso",
# ISO 8601 text, which readers convert to microseconds; "order", a log without times, whose lines
# are in time order.
TIME_UNITS = {
    "s": 1,
    "ms": 1_000,
    "us": 1_000_000,
    "ns": 1_000_000_000,
    "iso": 1_000_000,
    "order": 1,
}

# Common spellings of "missing". As ids, they would merge all such events into one user or item.
MISSING = ("", "nan", "NaN", "NAN", "null", "NULL", "Null", "None", "none", "<NA>", "\\N")


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of log files.

    Attributes:
      name: The value of `--format`.
      description: The source of such logs and the layout of a line.
      kind: "text" (fields and separators), "json" (one object a line) or "parquet".
      separator: The text between two fields; for kind "text" only.
      columns: The column of each role: a name, or a position from 0 in a file without header.
      num_fields: Number of fields in a line of a file without header; None if it has a header.
      time_unit: A key of `TIME_UNITS`; None if logs of this format differ.
      quoted: Whether double quotes may enclose a field.
    """

    name: str
    description: str
    kind: str = "text"
    separator: str = ","
    columns: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    num_fields: int | None = None
    time_unit: str | None = "s"
    quoted: bool = False

    @property
    def header(self) -> bool:
        """Whether the first line names the columns."""
        return self.kind == "text" and self.num_fields is None


def _by_position(*roles: str | None) -> dict[str, str | int]:
    return {role: position for position, role in enumerate(roles) if role}


def _named(user: str, item: str, timestamp: str, rating: str | None = None) -> dict[str, str | int]:
    named: dict[str, str | int] = {"user": user, "item": item, "timestamp": timestamp}
    return {**named, "rating": rating} if rating else named


_ALL = (
    Format(
        "movielens-dat",
        "MovieLens ratings.dat: user::item::rating::seconds",
        separator="::",
        columns=_by_position("user", "item", "rating", "timestamp"),
        num_fields=4,
    ),
    Format(
        "movielens-csv",
        "MovieLens ratings.csv: userId,movieId,rating,timestamp",
        columns=_named("userId", "movieId", "timestamp", "rating"),
        quoted=True,
    ),
    Format(
        "movielens-tab",
        "MovieLens u.data: user, item, rating, seconds between tabs",
        separator="\t",
        columns=_by_position("user", "item", "rating", "timestamp"),
        num_fields=4,
    ),
    Format(
        "recbole",
        "RecBole atomic .inter: tabs, a header of name:type such as user_id:token",
        separator="\t",
        columns=_named("user_id", "item_id", "timestamp", "rating"),
        time_unit=None,
    ),
    Format(
        "amazon-csv",
        "Amazon reviews 2014, ratings only: user,item,rating,seconds",
        columns=_by_position("user", "item", "rating", "timestamp"),
        num_fields=4,
        quoted=True,
    ),
    Format(
        "amazon-csv-item-first",
        "Amazon reviews 2018, ratings only: item,user,rating,seconds",
        columns=_by_position("item", "user", "rating", "timestamp"),
        num_fields=4,
        quoted=True,
    ),
    Format(
        "amazon-2023-csv",
        "Amazon reviews 2023: user_id,parent_asin,rating,timestamp in milliseconds",
        columns=_named("user_id", "parent_asin", "timestamp", "rating"),
        time_unit="ms",
        quoted=True,
    ),
    Format(
        "amazon-json",
        "Amazon reviews 2014/2018, an object a line: reviewerID, asin, overall, unixReviewTime",
        kind="json",
        columns=_named("reviewerID", "asin", "unixReviewTime", "overall"),
    ),
    Format(
        "amazon-2023-json",
        "Amazon reviews 2023, an object a line: user_id, parent_asin, rating, timestamp in ms",
        kind="json",
        columns=_named("user_id", "parent_asin", "timestamp", "rating"),
        time_unit="ms",
    ),
    Format(
        "kuairand",
        "KuaiRand log_*.csv: user_id, video_id, time_ms among others",
        columns=_named("user_id", "video_id", "time_ms"),
        time_unit="ms",
        quoted=True,
    ),
    Format(
        "taobao",
        "Taobao UserBehavior.csv: user,item,category,behaviour,seconds",
        columns=_by_position("user", "item", None, "behaviour", "timestamp"),
        num_fields=5,
    ),
    Format(
        "checkins",
        "SNAP check-ins (Gowalla): user, ISO time, latitude, longitude, place between tabs",
        separator="\t",
        columns=_by_position("user", "timestamp", None, None, "item"),
        num_fields=5,
        time_unit="iso",
    ),
    Format(
        "user-item",
        "A pair a line, `user item`; the lines of a user are in time order",
        separator=" ",
        columns=_by_position("user", "item"),
        num_fields=2,
        time_unit="order",
    ),
    Format("csv", "A header; commas, semicolons or pipes", time_unit=None, quoted=True),
    Format("tsv", "Tabs and a header", separator="\t", time_unit=None),
    Format("json", "An object a line", kind="json", time_unit=None),
    Format("parquet", "Parquet", kind="parquet", time_unit=None),
)

FORMATS: dict[str, Format] = {entry.name: entry for entry in _ALL}

# Common column names of each role, in lower case and in the order of preference. The readers look
# for them if neither the format nor the caller names the column.
COMMON_NAMES: dict[str, tuple[str, ...]] = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "session_id", "sessionid"),
    "item": ("item", "item_id", "itemid", "iid", "movieid", "video_id", "parent_asin", "asin"),
    "timestamp": ("timestamp", "time", "ts", "time_ms", "unixreviewtime", "datetime", "date"),
    "rating": ("rating", "overall", "stars"),
    "behaviour": (),
    "fold": (),  # the caller must name the column: a split is never used unasked
    "row": (),
}
