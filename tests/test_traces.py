"""Traces are read from every format to the same requests, and what cannot be read is a sentence."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from workshop_lib import simulate, traces
from workshop_lib.errors import DataError
from workshop_lib.traces import Trace, preset_requests, presets, read_trace

CSV = """\
time,key,size,op
10.0,anna,300,read
10.5,ben,,read
11.0,anna,200,write
12.5,"a,b",7,get
"""
JSON = """\
{"time": 10.0, "key": "anna", "size": 300}
{"time": 10.5, "key": "ben", "size": null, "op": "read"}
{"time": "1970-01-01T00:00:11Z", "key": "anna", "size": 200, "op": "write", "who": "me"}

{"time": 12.5, "key": "a,b", "size": 7, "op": "GET"}
"""
LOG = """\
10.0.0.1 - - [10/Oct/2026:13:55:36 +0200] "GET /anna HTTP/1.1" 200 300
10.0.0.1 - eva [10/Oct/2026:13:55:36 +0200] "GET /ben HTTP/1.1" 304 - "-" "curl/8 [x]"
10.0.0.1 - - [10/Oct/2026:13:55:37 +0200] "\\x16\\x03\\x01" 400 226
10.0.0.1 - - [10/Oct/2026:11:55:37 +0000] "POST /anna HTTP/1.1" 201 12 "http://x/" "curl"
10.0.0.1 - - [10/Oct/2026:13:55:38 +0200] "OPTIONS /anna HTTP/1.1" 200 12
10.0.0.1 - - [10/Oct/2026:13:55:39 +0200] "GET /a,b" 200 7
"""
MONITOR = r"""OK
10.000000 [0 127.0.0.1:60866] "GET" "anna"
10.250000 [0 127.0.0.1:60866] "SET" "anna" "\x00\"\\345678" "PX" "60000"
10.500000 [0 127.0.0.1:60866] "MGET" "ben" "cleo"
10.600000 [0 127.0.0.1:60867] "setex" "ben" "60" "abc"
10.700000 [0 lua] "CONFIG" "GET" "maxmemory"
11.000000 [0 127.0.0.1:60866] "DEL" "anna" "ben"
12.500000 [0 127.0.0.1:60868] "PING"
13.000000 [1 127.0.0.1:60869] "GET" "anna"
"""


@pytest.fixture
def written(tmp_path):
    def write(text, name="trace.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def told(trace):
    return (
        trace.seconds.tolist(),
        trace.keys.tolist(),
        trace.writes.tolist(),
        trace.key_bytes.tolist(),
    )


@pytest.mark.parametrize("text", [CSV, JSON], ids=["csv", "json"])
def test_a_table_and_json_lines_say_the_same(written, text):
    expected = ([0, 0.5, 1, 2.5], [0, 1, 0, 2], [False, False, True, False], [304, 50, 10])
    assert told(read_trace(written(text), size=50)) == expected
    zipped = written(gzip.compress(text.encode()), "trace.gz")
    assert told(read_trace(zipped, size=50)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Of a table time and key are enough, in any order; other columns may be there.
        ("\ufeffKey,user,TIME\r\na,x,3\r\nb,x,1\r\na,y,2\r\n",
         ([0, 1, 2], [0, 1, 1], [False] * 3, [50, 50])),
        # Of an access log reads and writes count, and the sizes of whole answers.
        (LOG, ([0, 0, 1, 3], [0, 1, 0, 2], [False, False, True, False], [305, 50, 11])),
        # Of MONITOR, setting what was just read is a fill, and tells the size.
        (MONITOR, ([0, 0.5, 0.5, pytest.approx(0.6), 1, 1, 3], [0, 1, 2, 1, 0, 1, 3],
                   [False, False, False, True, True, True, False], [4 + 9, 3 + 3, 50, 50])),
    ],
    ids=["table", "log", "monitor"],
)  # fmt: skip
def test_each_format_says_its_requests(written, text, expected):
    assert told(read_trace(written(text), size=50)) == expected


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (CSV + "soon,anna,3,read\n", 6, "isoformat"),
        (CSV + "nan,anna,3,read\n", 6, "no number of seconds"),
        (CSV + "13,anna,-5,read\n", 6, "size is not from 0"),
        (CSV + "13,anna,9999999999,read\n", 6, "size is not from 0"),
        (CSV + "13,anna,3,peruse\n", 6, "'peruse' is none of read, get"),
        (CSV + "13,anna\n", 6, "2 columns, and the first line 4"),
        (JSON + '{"time": 1}\n', 6, "missing required field `key`"),
        (LOG + "hello\n", 7, "no line of an access log"),
        (MONITOR + "hello\n", 10, "no line of MONITOR"),
        ("when,what\n1,a\n", 1, "begins with a line of names, at least time,key"),
        (b"time,key\n1,a\n\x80\x00,b\n", 3, "isoformat"),
    ],
)
def test_what_cannot_be_read_ends_in_a_sentence_that_names_the_file_and_the_line(
    written, text, line, said
):
    path = written(text)
    with pytest.raises(DataError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert said in str(caught.value)
    assert "anna" not in str(caught.value)


def test_what_is_no_file_or_too_long_or_cut_off_ends_in_a_sentence(tmp_path, written, monkeypatch):
    with pytest.raises(DataError, match=r"absent: .*No such file"):
        read_trace(tmp_path / "absent")
    for broken in (b"no gzip", gzip.compress(CSV.encode() * 999)[:-30]):
        with pytest.raises(DataError, match=r"trace\.gz"):
            read_trace(written(broken, "trace.gz"))
    with pytest.raises(DataError, match="no read"):
        read_trace(written("time,key,op\n1,a,write\n"))
    monkeypatch.setattr(traces, "MAX_REQUESTS", 3)
    with pytest.raises(DataError, match="line 5: only 3 requests fit"):
        read_trace(written(CSV))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"share": 0}, {"share": 2}])
def test_what_is_assumed_of_a_trace_is_in_range(written, wrong):
    with pytest.raises(DataError, match="size has to be above 0, share 0 to 1"):
        read_trace(written(CSV), **wrong)


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([CSV, JSON, LOG, MONITOR, ""]))
def test_whatever_stands_in_a_file_it_is_read_or_refused(tmp_path_factory, junk, before):
    path = tmp_path_factory.getbasetemp() / "junk"
    path.write_bytes(before.encode() + junk)
    said = str(path)
    try:
        found = len(read_trace(path))
    except DataError as error:
        found, said = 1, str(error)
    assert found > 0
    assert str(path) in said


def test_a_sample_has_whole_keys_about_as_many_requests_and_its_share(tmp_path):
    made, share = preset_requests("cluster45", 20_000)
    made.to_csv(tmp_path / "made.csv", index=False)
    trace = read_trace(tmp_path / "made.csv", share=share)
    assert not any("k00" in str(getattr(trace, field)) for field in Trace.__slots__)
    small = trace.sample(5_000, seed=3)
    assert len(small) == pytest.approx(5_000, rel=0.1)
    assert small.share == pytest.approx(share / 4)
    assert set(small.keys.tolist()) == set(range(len(small.key_bytes)))
    assert told(trace.sample(30_000)) == told(trace)
    with pytest.raises(DataError, match="has no key"):
        trace.sample(0)
    with pytest.raises(DataError, match="cluster13, cluster14"):
        preset_requests("cluster1", 10)


# The presets, against what is published and against what they are made for.


def test_the_published_facts_are_those_of_the_table():
    found = presets()
    assert list(found) == [f"cluster{n}" for n in (13, 14, 29, 45, 50, 52)]
    assert found["cluster52"].operations == {"get": 0.91, "add": 0.04, "gets": 0.02, "cas": 0.02}
    assert found["cluster29"].ttls == {3_600: 0.67, 7_200: 0.33}


@pytest.mark.parametrize("name", presets())
def test_a_preset_has_the_published_sizes_rate_and_about_as_many_requests_per_key(name):
    facts, n = presets()[name], 50_000
    made, share = preset_requests(name, n, seed=1)
    assert made.equals(preset_requests(name, n, seed=1)[0])
    assert set(made["key"].str.len()) == {facts.key_bytes}
    assert set(made["size"]) == {facts.value_bytes}
    # Fills are left out: adds, and at most a set for each miss.
    least = 0.99 - max(facts.miss_ratio, facts.operations.get("add", 0))
    assert least < n / made["time"].max() / share / facts.kqps / 1_000 < 1.01
    # Chance leaves some keys out.
    assert least < n / made["key"].nunique() / facts.mean_frequency < 2


def test_a_preset_has_the_published_mix():
    # 65 % get, of which 12.18 % miss and are filled by 7.9 of 13 % set; the rest are writes.
    made, _ = preset_requests("cluster14", 50_000)
    assert (made["op"] == "read").mean() == pytest.approx(0.65 / (1 - 0.1218 * 0.65), abs=0.01)


def test_where_the_ttl_and_not_memory_set_the_hit_ratio_the_model_comes_near_the_published_one():
    facts = presets()["cluster29"]
    made, _ = preset_requests("cluster29", 50_000)
    keys = pd.factorize(made["key"])[0]
    ratios = [
        simulate.ttl_outcome(made["time"], keys, made["op"] == "write", ttl).hit.mean()
        for ttl in facts.ttls
    ]
    assert np.average(ratios, weights=list(facts.ttls.values())) == pytest.approx(
        1 - facts.miss_ratio, abs=0.1
    )
