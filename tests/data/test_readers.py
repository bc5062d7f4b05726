"""Every dialect, as it is published: named and detected, plain and gzip."""

import gzip
import re

import narwhals as nw
import polars as pl
import pytest

from linseqrec.data.readers import FORMATS, LogError, read_file
from linseqrec.data.readers.formats import TIME_UNITS

# Dialect to the text of a small file and its events: (user, item, seconds), in the file's order.
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
    """(user, item, seconds) of a log in its order."""
    frame = log.frame.collect().to_native().sort("row")
    assert frame["row"].to_list() == list(range(len(frame)))
    if "timestamp" not in frame.columns:
        return [(user, item, None) for user, item in frame.select("user", "item").rows()]
    ticks = TIME_UNITS[log.time_unit or "s"]
    return [
        (user, item, int(time // ticks))
        for user, item, time in frame.select("user", "item", "timestamp").rows()
    ]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", LOGS)
def test_dialect(tmp_path, name, packed):
    text, expected = LOGS[name]
    path = tmp_path / ("log.gz" if packed else "log")
    data = text.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    columns = COLUMNS.get(name)
    named = read_file(path, format=name, columns=columns)
    assert events(named) == expected
    detected = read_file(path, columns=columns)
    assert detected.format == name
    assert events(detected) == expected
    assert detected.columns == named.columns and detected.time_unit == named.time_unit


def test_every_format_has_a_fixture():
    assert set(LOGS) | {"parquet"} == set(FORMATS)


def test_recbole_is_known_by_its_suffix(tmp_path):
    path = tmp_path / "ml.inter"
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\tweight\n1\t2\t3\t4\n")
    log = read_file(path)
    assert (log.format, events(log)) == ("recbole", [("1", "2", 3)])
    assert log.columns["timestamp"] == "timestamp:float" and log.ignored == ["weight"]


def test_parquet(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {"user_id": [7, 8], "row": ["x", "y"], "item": ["a", "b"], "ts": [3, 1]}
    ).write_parquet(path)
    log = read_file(path)
    assert events(log) == [("7", "a", 3), ("8", "b", 1)]
    assert log.format == "parquet" and log.ignored == ["row"] and len(log.sha256) == 64


def test_columns_by_name_and_by_position(tmp_path):
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


def test_a_role_may_be_moved_to_another_column(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOGS["kuairand"][0])
    log = read_file(path, columns={"rating": "is_click"})
    assert log.format == "kuairand"
    assert log.frame.collect()["rating"].to_list() == [1.0, 0.0]


def test_order_instead_of_time(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\nu,i,whenever\n")
    log = read_file(path, time_unit="order")
    assert events(log) == [("u", "i", None)] and log.ignored == ["timestamp"]


def test_byte_order_mark_and_missing_last_line_end(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xef\xbb\xbfuser,item,timestamp\nu,\xc3\xa9,1\nv,j,2")
    log = read_file(path)
    assert events(log) == [("u", "é", 1), ("v", "j", 2)]
    assert log.columns["user"] == "user"


def test_ids_keep_their_text(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\n007,1.0,1\n7,1,2\n+7, 1,3\n")
    assert events(read_file(path)) == [("007", "1.0", 1), ("7", "1", 2), ("+7", " 1", 3)]


def test_blocks_join(tmp_path, monkeypatch):
    """The pass over the bytes finds the same lines however the file falls into blocks."""
    path = tmp_path / "log.csv"
    lines = [f"u{number},i,{number}" for number in range(40)]
    for block in (1, 7, 64):
        monkeypatch.setattr("linseqrec.data.readers.source._BLOCK", block)
        path.write_text("\n".join(["user,item,timestamp", *lines]))
        assert len(events(read_file(path))) == 40
        path.write_text("\n".join(["user,item,timestamp", *lines[:30], "u,i", *lines[30:]]))
        with pytest.raises(LogError, match="line 32: 2 fields, expected 3"):
            read_file(path)
        path.write_text("\n".join(["user,item,timestamp", *lines[:30], '"u",i', *lines[30:]]))
        with pytest.raises(LogError, match="line 32: 2 fields, expected 3"):
            read_file(path)


@pytest.mark.parametrize("file", ["log.csv", "log.csv.gz"])
def test_sha256_is_the_files(tmp_path, file):
    import hashlib

    path = tmp_path / file
    data = LOGS["csv"][0].encode()
    path.write_bytes(gzip.compress(data) if file.endswith("gz") else data)
    assert read_file(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


UNTOLD = {
    "two readings": ("0000000078,0000000116,5.0,1092182400\n", {}, "cannot tell the format"),
    "no names": ("a,b,c\n1,2,3\n", {}, "line 1: cannot tell the format"),
    "unknown name": (
        "user,item,ts\n1,2,3\n",
        {"format": "excel"},
        "unknown format 'excel'; known:",
    ),
    "unknown role": ("user,item,ts\n1,2,3\n", {"columns": {"who": "user"}}, "unknown column roles"),
    "unknown unit": ("user,item,ts\n1,2,3\n", {"time_unit": "min"}, "unknown time unit 'min'"),
    "no header": (
        "1::2::3::4\n",
        {"columns": {"user": "u"}},
        "no header: name the user by position",
    ),
    "no such field": ("a,b,1\n", {"columns": {"user": 0, "item": 1, "timestamp": 5}}, "no field 5"),
    "no position": ("a,b,1\n", {"columns": {"user": 0, "item": 1}}, "no position is named"),
    "not parquet": ("a,b,1\n", {"format": "parquet"}, "'parquet' was asked for, but this is text"),
    "json array": ('[{"user": 1}]\n', {}, "line 1: a JSON array"),
    "a row for a file": ("user,item,ts\n1,2,3\n", {"columns": {"row": "ts"}}, "has its own order"),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_a_format_that_cannot_be_told_is_refused(tmp_path, case):
    text, arguments, message = UNTOLD[case]
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(LogError, match=re.escape(message)) as caught:
        read_file(path, **arguments)
    assert str(path) in str(caught.value)


def test_amazon_columns_are_told_by_their_ids(tmp_path):
    """The two generations differ only in which column comes first."""
    path = tmp_path / "log"
    path.write_text("A000000001,B000000002,5.0,1092182400\n")
    assert read_file(path).format == "amazon-csv"
    path.write_text("B000000002,A000000001,5.0,1092182400\n")
    assert read_file(path).format == "amazon-csv-item-first"
    path.write_text("1,2,5.0,1092182400\n")
    with pytest.raises(LogError, match="cannot tell the format"):
        read_file(path)
    assert events(read_file(path, format="amazon-csv")) == [("1", "2", 1092182400)]


def test_values_that_do_not_read_are_null(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp,rating\nu,i,soon,good\nv,j,5,1\n")
    frame = read_file(path).frame.collect()
    assert isinstance(frame, nw.DataFrame)
    assert frame["timestamp"].to_list() == [None, 5.0] and frame["rating"].to_list() == [None, 1.0]
