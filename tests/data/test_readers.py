"""Every format as its logs are published: named and detected, plain and gzip."""

import gzip
import re

import narwhals as nw
import polars as pl
import pytest

from linseqrec.data.readers import FORMATS, LogError, raw_lines, read_file
from linseqrec.data.readers.formats import TIME_UNITS

# For each format, a small file and its events (user, item, seconds) in the order of the file.
LOGS = {
    "movielens-dat": (
        "1::1193::5::978300760\n1::661::3::978302109\n12::1193::4::978300760\n",
        [("1", "1193", 978300760), ("1", "661", 978302109), ("12", "1193", 978300760)],
    ),
    "movielens-csv": (
        "userId,movieId,rating,timestamp\r\n1,1,4.0,964982703\r\n1,3,4.0,964981247\r\n",
        [("1", "1", 964982703), ("1", "3", 964981247)],
    ),
    "movielens-tab": (
        "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
        [("196", "242", 881250949), ("186", "302", 891717742)],
    ),
    "recbole": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        '196\t242\t3\t881250949\nx y\ta"b\t3.5\t8.91717742E8\n',
        [("196", "242", 881250949), ("x y", 'a"b', 891717742)],
    ),
    "amazon-csv": (
        "A3AF8FFZAZYNE5,0000000078,5.0,1092182400\nAH2L9G3DQHHAJ,0000000116,4.0,1019865600\n",
        [("A3AF8FFZAZYNE5", "0000000078", 1092182400), ("AH2L9G3DQHHAJ", "0000000116", 1019865600)],
    ),
    "amazon-csv-item-first": (
        "0001713353,A1C6M8LCIX4M6M,5.0,1123804800\nB00005N7P0,A1REUF3A1YCPHM,5.0,1112140800\n",
        [
            ("A1C6M8LCIX4M6M", "0001713353", 1123804800),
            ("A1REUF3A1YCPHM", "B00005N7P0", 1112140800),
        ],
    ),
    "amazon-2023-csv": (
        "user_id,parent_asin,rating,timestamp\n"
        "AGKHLEW2SOWHNMFQIJGBECAF7INQ,B00YQ6X8EO,5.0,1588687728923\n"
        "AGKHLEW2SOWHNMFQIJGBECAF7INQ,B081TJ8YS3,4.0,1588615855070\n",
        [
            ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8EO", 1588687728),
            ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B081TJ8YS3", 1588615855),
        ],
    ),
    "amazon-json": (
        '{"reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "helpful": [2, 3], "reviewText": '
        '"I \\"love\\" it\\n", "overall": 5.0, "unixReviewTime": 1252800000}\n'
        '{"overall": 4.0, "verified": true, "unixReviewTime": 1252800001, "asin": "B01", '
        '"style": {"Size:": " L"}, "reviewerID": "A3"}\n',
        [("A2SUAM1J3GNN3B", "0000013714", 1252800000), ("A3", "B01", 1252800001)],
    ),
    "amazon-2023-json": (
        '{"rating": 5.0, "title": "t", "text": "…", "images": [], "asin": "B00YQ6X8EX", '
        '"parent_asin": "B00YQ6X8EO", "user_id": "AGKH", "timestamp": 1588687728923}\n',
        [("AGKH", "B00YQ6X8EO", 1588687728)],
    ),
    "kuairand": (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like\n"
        "0,3855851,20220408,1400,1649399999999,1,0\n0,4353301,20220408,1400,1649399999998,0,0\n",
        [("0", "3855851", 1649399999), ("0", "4353301", 1649399999)],
    ),
    "taobao": (
        "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,buy,1511561733\n",
        [("1", "2268318", 1511544070), ("1", "2333346", 1511561733)],
    ),
    "checkins": (
        "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n"
        "0\t2010-10-18T22:17:43Z\t30.2691029532\t-97.7493953705\t420315\n",
        [("0", "22847", 1287532527), ("0", "420315", 1287440263)],
    ),
    "user-item": ("1 3\n1 1\n2 3\n", [("1", "3", None), ("1", "1", None), ("2", "3", None)]),
    "csv": (
        'uid,price,item,time\n"a, b",1,"x ""y""",17\nc,2,z,4.5\n',
        [("a, b", 'x "y"', 17), ("c", "z", 4)],
    ),
    "tsv": (
        "user\titem\tdatetime\na\tb\t2020-01-01 00:00:01\na\tc\t1970-01-01T00:00:00.9Z\n",
        [("a", "b", 1577836801), ("a", "c", 0)],
    ),
    "json": (
        '{"session": "s", "item": 5, "ts": 1}\n{"session": "t", "item": 6, "ts": 2.5}\n',
        [("s", "5", 1), ("t", "6", 2)],
    ),
}
COLUMNS = {"json": {"user": "session"}}


def events(log):
    """The (user, item, seconds) of a log in its order."""
    frame = log.frame.collect().to_native().sort("row")
    assert frame["row"].to_list() == list(range(len(frame)))
    if "timestamp" not in frame.columns:
        return [(user, item, None) for user, item in frame.select("user", "item").rows()]
    ticks = TIME_UNITS[log.time_unit or "s"]
    return [
        (user, item, int(time // ticks))
        for user, item, time in frame.select("user", "item", "timestamp").rows()
    ]


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", LOGS)
def test_a_named_and_a_detected_format_give_the_same_events(tmp_path, name, compressed):
    text, expected = LOGS[name]
    path = tmp_path / ("log.gz" if compressed else "log")
    data = text.encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    columns = COLUMNS.get(name)
    named = read_file(path, format=name, columns=columns)
    assert events(named) == expected
    detected = read_file(path, columns=columns)
    assert detected.format == name
    assert events(detected) == expected
    assert detected.columns == named.columns and detected.time_unit == named.time_unit


def test_every_format_is_tested():
    assert set(LOGS) | {"parquet"} == set(FORMATS)


def test_recbole_files_are_detected_by_their_suffix(tmp_path):
    path = tmp_path / "ml.inter"
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\tweight\n1\t2\t3\t4\n")
    log = read_file(path)
    assert (log.format, events(log)) == ("recbole", [("1", "2", 3)])
    assert log.columns["timestamp"] == "timestamp:float" and log.ignored == ["weight"]


def test_a_folder_of_parquet_leaves_no_file_out(tmp_path):
    frame = pl.DataFrame({"user": [1, 2], "item": [3, 4], "timestamp": [5, 6]})
    for name in ("log/a.parquet", "log/year=2024/b.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        frame.write_parquet(tmp_path / name)
    with pytest.raises(LogError, match="so do folders within it, such as .*year=2024/b.parquet"):
        read_file(tmp_path / "log")


@pytest.mark.parametrize("second", [[], ["extra"]], ids=["same columns", "one more column"])
@pytest.mark.parametrize("types", [(pl.Int64, pl.Int32), (pl.Int32, pl.Int64, pl.UInt32)])
def test_parquet_files_may_differ_in_integers_and_in_columns_without_a_role(
    tmp_path, types, second
):
    expected = []
    for part, dtype in enumerate(types):
        frame = pl.DataFrame({"user": ["u"], "item": [part], "timestamp": [5 + part], "more": [1]})
        frame = frame.with_columns(pl.col("item", "timestamp").cast(dtype))
        frame = frame.with_columns(pl.lit(0).alias(name) for name in second if part)
        frame.write_parquet(tmp_path / f"{part}.parquet")
        expected.append(("u", str(part), 5 + part))
    assert events(read_file(tmp_path)) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("item").cast(pl.String), r"2.parquet holds 'item' as String, but .*1.parquet as"),
        (pl.col("item").cast(pl.UInt64), "2.parquet holds 'item' as UInt64, but .* as Int64"),
        (pl.col("item").alias("product"), "2.parquet has no column 'item', but .*1.parquet has"),
    ],
    ids=["text", "large integers", "no column"],
)
def test_parquet_files_that_do_not_fit_together_are_named(tmp_path, change, message):
    frame = pl.DataFrame({"user": ["u"], "item": [2], "timestamp": [5]})
    frame.write_parquet(tmp_path / "1.parquet")
    frame.select("user", "timestamp", change).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(LogError, match=f"{message}.*: write all files with the same") as caught:
        events(read_file(tmp_path))
    assert "download" not in str(caught.value)


def test_a_damaged_parquet_file_of_a_folder_is_named(tmp_path):
    pl.DataFrame({"user": ["u"], "item": [2], "timestamp": [5]}).write_parquet(
        tmp_path / "1.parquet"
    )
    (tmp_path / "2.parquet").write_bytes(b"PAR1")
    with pytest.raises(LogError, match="2.parquet: cannot be read: .* download it again"):
        events(read_file(tmp_path))


def test_a_parquet_file_gives_its_events_in_order(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {"user_id": [7, 8], "row": ["x", "y"], "item": ["a", "b"], "ts": [3, 1]}
    ).write_parquet(path)
    log = read_file(path)
    assert events(log) == [("7", "a", 3), ("8", "b", 1)]
    assert log.format == "parquet" and log.ignored == ["row"] and len(log.sha256) == 64


def test_the_caller_names_columns_by_name_or_position(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("who,row,what,when,part\nu,1,i,10,train\nv,2,j,5,test\n")
    names = {"user": "who", "item": "what", "timestamp": "when", "fold": "part"}
    log = read_file(path, columns=names)
    assert events(log) == [("u", "i", 10), ("v", "j", 5)]
    assert log.frame.collect()["fold"].to_list() == ["train", "test"] and log.ignored == ["row"]
    path.write_text("u|0\t9\ti\t10\nv\t8\tj\t5\n")
    log = read_file(path, columns={"user": 0, "item": 2, "timestamp": 3})
    assert events(log) == [("u|0", "i", 10), ("v", "j", 5)]
    assert log.format == "tsv" and log.ignored == ["1"]


@pytest.mark.parametrize("headerless", [False, True], ids=["header", "positions"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"], ids=["comma", "tab", ";", "pipe"])
def test_the_first_line_shows_the_separator(tmp_path, separator, headerless):
    rows = [["user", "item", "time"]] * (not headerless)
    rows += [["u", "a:b", "10"], ["v", "c d", "5"]]
    path = tmp_path / "log.csv"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    columns = {"user": 0, "item": 1, "timestamp": 2} if headerless else None
    log = read_file(path, columns=columns)
    assert events(log) == [("u", "a:b", 10), ("v", "c d", 5)]
    assert log.format == ("tsv" if separator == "\t" else "csv")
    if separator != "\t":
        assert events(read_file(path, columns=columns, format="csv")) == events(log)


def test_the_columns_choose_among_several_separators(tmp_path):
    """The header has commas inside a name, and quotes around a semicolon."""
    path = tmp_path / "log.csv"
    path.write_text('user;name, given;item;ts\nu;Ann, B;"i;k";1\nv;"C ""D""";j;2\n')
    assert events(read_file(path)) == [("u", "i;k", 1), ("v", "j", 2)]
    path.write_text("who|what, where|when\nu|i|1\n")
    columns = {"user": "who", "item": "what, where", "timestamp": "when"}
    assert events(read_file(path, columns=columns)) == [("u", "i", 1)]


@pytest.mark.parametrize("separator", ["::", ":", "^", "\\", "]", " ", "~~~", "-"])
def test_the_caller_names_the_separator(tmp_path, separator):
    path = tmp_path / "log.csv"
    rows = [["user", "item", "time"], ["u", "i", "10"], ["v", "", "5"]]
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    log = read_file(path, separator=separator)
    assert [event[::2] for event in events(log)] == [("u", 10), ("v", 5)]
    assert log.format == "csv" and log.separator == separator
    if len(separator) == 1:
        path.write_text(separator.join(['"user"', "item", "time\nu", f'"i{separator}j"', "1\n"]))
        assert events(read_file(path, separator=separator)) == [("u", f"i{separator}j", 1)]


def test_an_unnamed_rating_may_share_its_column(tmp_path):
    for name, text, column in (
        ("log.csv", "user,item,ts,stars\nu,i,1,5\n", "stars"),
        ("ratings.dat", "u::i::5::1\n", 2),
    ):
        (tmp_path / name).write_text(text)
        arguments = {"format": "movielens-dat"} if name == "ratings.dat" else {}
        log = read_file(tmp_path / name, columns={"behaviour": column}, **arguments)
        assert log.columns["rating"] == log.columns["behaviour"] == column


def test_the_caller_s_column_overrides_the_format_s(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOGS["kuairand"][0])
    log = read_file(path, columns={"rating": "is_click"})
    assert log.format == "kuairand"
    assert log.frame.collect()["rating"].to_list() == [1.0, 0.0]


def test_a_log_without_times_needs_no_timestamp_column(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\nu,i,whenever\n")
    log = read_file(path, time_unit="order")
    assert events(log) == [("u", "i", None)] and log.ignored == ["timestamp"]


def test_a_byte_order_mark_and_a_missing_last_line_end_are_accepted(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xef\xbb\xbfuser,item,timestamp\nu,\xc3\xa9,1\nv,j,2")
    log = read_file(path)
    assert events(log) == [("u", "é", 1), ("v", "j", 2)]
    assert log.columns["user"] == "user"


@pytest.mark.parametrize("header", ['"date, local",user,item\n', ""], ids=["header", "no header"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_byte_order_mark_before_a_quote_is_accepted(tmp_path, compressed, header):
    path = tmp_path / "log.csv"
    data = f'\ufeff{header}"1970-01-01T00:00:05","a, b",i\n'.encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    names = ["date, local", "user", "item"] if header else [0, 1, 2]
    columns = dict(zip(["timestamp", "user", "item"], names, strict=True))
    log = read_file(path, format="csv", columns=columns)
    assert events(log) == [("a, b", "i", 5)]
    raw_lines.check_quotes(path, ",")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_byte_order_mark_before_json_is_named(tmp_path, compressed):
    path, lines = tmp_path / "log.json", b'\xef\xbb\xbf{"user": 1, "item": 2, "timestamp": 3}\n'
    path.write_bytes(gzip.compress(lines) if compressed else lines)
    with pytest.raises(LogError, match="line 1: the file begins with a byte-order mark. Remove it"):
        read_file(path)


@pytest.mark.parametrize("name", ["log[1].json", "log*.json", "log?.json"])
def test_a_json_log_s_name_is_no_pattern_for_the_names_of_others(tmp_path, name):
    line = '{"user": "u", "item": 2, "timestamp": 3}\n'
    (tmp_path / name).write_text(line)
    (tmp_path / "log1.json").write_text(line.replace('"u"', '"other"'))
    assert events(read_file(tmp_path / name)) == [("u", "2", 3)]


def test_a_key_that_the_first_event_lacks_is_a_column(tmp_path):
    path = tmp_path / "log.json"
    path.write_text('{"user": 1, "item": 2}\n{"item": 3, "more": 4, "user": 1, "ts": 5}\n')
    log = read_file(path)
    assert log.columns == {"user": "user", "item": "item", "timestamp": "ts"}
    assert log.ignored == ["more"]
    rows = log.frame.collect().to_native().select("item", "timestamp").rows()
    assert rows == [("2", None), ("3", 5.0)]
    path.write_text('{"asin": "x"}\n' + LOGS["amazon-json"][0])
    assert read_file(path).format == "amazon-json"


def test_ids_keep_their_text(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\n007,1.0,1\n7,1,2\n+7, 1,3\n")
    assert events(read_file(path)) == [("007", "1.0", 1), ("7", "1", 2), ("+7", " 1", 3)]


def test_the_check_of_lines_does_not_depend_on_the_block_size(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    lines = [f"u{number},i,{number}" for number in range(40)]
    for block in (1, 7, 64):
        monkeypatch.setattr("linseqrec.data.readers.raw_lines._BLOCK", block)
        path.write_text("\n".join(["user,item,timestamp", *lines]))
        assert len(events(read_file(path))) == 40
        path.write_text("\n".join(["user,item,timestamp", *lines[:30], "u,i", *lines[30:]]))
        with pytest.raises(LogError, match="line 32: the line has 2 fields: it must have 3"):
            read_file(path)
        path.write_text("\n".join(["user,item,timestamp", *lines[:30], '"u",i', *lines[30:]]))
        with pytest.raises(LogError, match="line 32: the line has 2 fields: it must have 3"):
            read_file(path)


def test_a_zero_byte_after_the_head_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr("linseqrec.data.readers.raw_lines._HEAD_BYTES", 64)
    path = tmp_path / "log.csv"
    path.write_bytes(b"user,item,timestamp\n" + b"u,i,5\n" * 40 + bytes(8))
    with pytest.raises(LogError, match="line 42: the line has a zero byte. The file is damaged"):
        read_file(path)


@pytest.mark.parametrize("file", ["log.csv", "log.csv.gz"])
def test_sha256_is_the_digest_of_the_bytes_on_disk(tmp_path, file):
    import hashlib

    path = tmp_path / file
    data = LOGS["csv"][0].encode()
    path.write_bytes(gzip.compress(data) if file.endswith("gz") else data)
    assert read_file(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# A file, the arguments, and the error message.
REFUSED = {
    "ids of both Amazon formats": (
        "0000000078,0000000116,5.0,1092182400\n",
        {},
        "cannot detect the format",
    ),
    "no common names": (
        "a,b,c\n1,2,3\n",
        {},
        "line 1: cannot detect the format from the first line 'a,b,c'. Set --format to one of",
    ),
    "unknown format": (
        "user,item,ts\n1,2,3\n",
        {"format": "excel"},
        "format='excel' is unknown; known: movielens-dat,",
    ),
    "unknown role": (
        "user,item,ts\n1,2,3\n",
        {"columns": {"who": "user"}},
        "--columns names the unknown roles ['who']; known: user, item",
    ),
    "unknown time unit": (
        "user,item,ts\n1,2,3\n",
        {"time_unit": "min"},
        "time_unit='min' is unknown; known: s, ms",
    ),
    "name without header": (
        "1::2::3::4\n",
        {"columns": {"user": "u"}},
        "--columns=user=u names a column, but the file has no header: name the user by position",
    ),
    "a common name above ids": (
        "user_id,product\na,x\nb,y\n",
        {"columns": {"user": 0, "item": 1}, "time_unit": "order"},
        "line 1 looks like a header: 'user_id,product'. Name the columns by it (--columns=",
    ),
    "text above numbers": (
        "visitor;sku;price\n1;2;a\n3;4;b\n",
        {"columns": {"user": 0, "item": 1}, "time_unit": "order"},
        "line 1 looks like a header: 'visitor;sku;price'",
    ),
    "text above pairs of numbers": (
        "visitor sku\n1 2\n",
        {},
        "or remove the line. If it is an event, write a line of names above it.",
    ),
    "names and positions": (
        "user_id,item,ts\n1,2,3\n",
        {"columns": {"user": "user_id", "item": 1}},
        "--columns=user=user_id,item=1 mixes names and positions. If line 1 names the columns, "
        "type names only: --columns=user=NAME,item=NAME,... If it is an event, type positions only",
    ),
    "names and positions of MovieLens": (
        "1::2::3::4\n",
        {"columns": {"user": "u", "item": 1}, "format": "movielens-dat"},
        "--columns=user=u,item=1 mixes names and positions",
    ),
    "position too large": (
        "a,b,1\n",
        {"columns": {"user": 0, "item": 1, "timestamp": 5}},
        "--columns=timestamp=5, but a line has 3 fields: the position must be from 0 to 2",
    ),
    "no position": (
        "a,b,1\n",
        {"columns": {"user": 0, "item": 1}},
        "--columns names no position for the timestamp. Add timestamp=POSITION, from 0 to 2",
    ),
    "one column for two roles": (
        "user,item,ts\n1,2,3\n",
        {"columns": {"user": "user", "item": "user"}},
        "column 'user' is both the user and the item. Name another column for one of them: "
        "--columns=user=COLUMN,item=COLUMN.",
    ),
    "the column of a common name for another role": (
        "user,item,ts\n1,2,3\n",
        {"columns": {"user": "item"}},
        "column 'item' is both the user and the item",
    ),
    "one position for two roles": (
        "a,b,1\n",
        {"columns": {"user": 0, "item": 1, "timestamp": 2, "behaviour": 1}},
        "column 1 is both the item and the behaviour",
    ),
    "text as Parquet": (
        "a,b,1\n",
        {"format": "parquet"},
        "--format=parquet, but the file is text. Leave --format out",
    ),
    "two separators": (
        "user,item,ts\n1,2,3\n",
        {"separator": ",;"},
        "--separator=',;' must be one ASCII character, or one that is repeated, such as ::",
    ),
    "separator of another alphabet": (
        "user¦item¦ts\n1¦2¦3\n",
        {"separator": "¦"},
        "--separator='¦' must be one ASCII character",
    ),
    "separator for MovieLens": (
        "1::2::3::4\n",
        {"separator": "::", "format": "movielens-dat"},
        "--separator='::' is for CSV files, but the format is movielens-dat. Leave --separator out",
    ),
    "unknown separator": (
        "user~item~ts\n1~2~3\n",
        {},
        "If fields are not between commas, tabs, semicolons or pipes, set --separator too.",
    ),
    "json array": ('[{"user": 1}]\n', {}, "line 1: this is a JSON array. Write one object per"),
    "row of a file": (
        "user,item,ts\n1,2,3\n",
        {"columns": {"row": "ts"}},
        "role row is for frames, but a file has its own order: leave it out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unknown_format_or_wrong_argument_is_refused(tmp_path, case):
    text, arguments, message = REFUSED[case]
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(LogError, match=re.escape(message)) as caught:
        read_file(path, **arguments)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "lines",
    [
        ["user,a", "v,b", "user,c"],
        ["u,i", "1,2", "v,3"],
        ["u,4", "1,2", "3,3"],
        ["5,date", "6,time"],
        [",", "1,2"],
        ["7,8"],
        ["u,i"],
    ],
)
def test_a_first_event_is_not_taken_for_a_header(tmp_path, lines):
    path = tmp_path / "log.csv"
    path.write_text("\n".join([*lines, ""]))
    log = read_file(path, columns={"user": 0, "item": 1}, time_unit="order")
    assert [f"{user or ''},{item or ''}" for user, item, _ in events(log)] == lines


def test_the_two_amazon_formats_are_detected_by_their_ids(tmp_path):
    """They differ only in the order of the user and item columns."""
    path = tmp_path / "log"
    path.write_text("A000000001,B000000002,5.0,1092182400\n")
    assert read_file(path).format == "amazon-csv"
    path.write_text("B000000002,A000000001,5.0,1092182400\n")
    assert read_file(path).format == "amazon-csv-item-first"
    path.write_text("1,2,5.0,1092182400\n")
    with pytest.raises(LogError, match="cannot detect the format"):
        read_file(path)
    assert events(read_file(path, format="amazon-csv")) == [("1", "2", 1092182400)]


def test_values_that_cannot_be_parsed_are_null(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp,rating\nu,i,soon,good\nv,j,5,1\n")
    frame = read_file(path).frame.collect()
    assert isinstance(frame, nw.DataFrame)
    assert frame["timestamp"].to_list() == [None, 5.0] and frame["rating"].to_list() == [None, 1.0]


def test_a_first_line_that_no_reader_of_quotes_takes_is_no_crash(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b'"user","item","timestamp"\r"u","i","5"\n"u","i","6"\n')
    with pytest.raises(LogError, match="line 1: cannot detect the format from the first line"):
        read_file(path).frame.collect()
