"""Indexes, lists and shards made to harm: paths out of the root, forged columns, headers and texts."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import task, write

from polyvit.data.index.io import Example, finish_scan, index_classes, read_index, write_index
from polyvit.data.layouts.scanner import scan
from polyvit.data.loading.reader import load
from polyvit.errors import BadMedia, UserError

GOOD = {
    "file": Example("a", "a.jpg", (0,), "train"),
    "tar": Example("b", "b.tar", (1,), "test", "tar", offset=512, length=9),
    "parquet": Example("c", "c.parquet", (0, 1), "validation", "parquet", offset=1, row=3),
}


def index_with(tmp_path: Path, **columns: list[Any]) -> Path:
    """A written index of GOOD in which whole columns are replaced; its hash is left as it was."""
    path = tmp_path / "index.parquet"
    write_index(finish_scan(GOOD.values(), ["x", "y"], []), path)
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("labels", [[0], [2], [0]], r"a label outside 0..1"),
        ("labels", [[0], [-1], [0]], r"a label outside 0..1"),
        ("labels", [[0], None, [0]], "column labels has empty cells"),
        ("labels", [[0], [None], [0]], "a label outside"),
        ("split", ["train", "Test", "train"], "split 'Test'; allowed are train, validation, test"),
        ("container", ["file", "zip", "tar"], "container 'zip'; allowed are file, tar, parquet, cifar"),
        ("offset", [0, -5, 0], "offset below 0"),
        ("length", [-1, -9, -1], "length below 0"),
        ("row", [-1, -1, -1], "row below 0"),
        ("start", [0.0, float("nan"), 0.0], "no time"),
        ("end", [-1.0, float("inf"), -1.0], "no time"),
        ("key", ["a", None, "c"], "column key has empty cells"),
    ],
)
def test_a_forged_index_is_refused(column: str, values: list[Any], reason: str, tmp_path: Path) -> None:
    assert list(read_index(index_with(tmp_path)).examples) == list(GOOD.values())
    with pytest.raises(UserError, match=f"damaged index: .*{reason}.*run `polyvit index` again"):
        read_index(index_with(tmp_path, **{column: values}))


def test_forged_words_about_an_index_are_refused(tmp_path: Path) -> None:
    path = index_with(tmp_path)
    table = pq.read_table(path)
    told = dict(table.schema.metadata)
    for name, text in [
        ("polyvit.problems", b"[{"), ("polyvit.problems", b'[{"x": 1}]'), ("polyvit.classes", b"\xff"),
        ("polyvit.classes", b"7"), ("polyvit.problems", b"5"),
    ]:  # fmt: skip
        pq.write_table(table.replace_schema_metadata({**told, name.encode(): text}), path)
        with pytest.raises(UserError, match="run `polyvit index` again"):
            read_index(path)
    pq.write_table(table.replace_schema_metadata({**told, b"polyvit.classes": b"\xff{"}), path)
    with pytest.raises(UserError, match="run `polyvit index` again"):
        index_classes(path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.jpg", "a/../../secret.jpg", "./../secret.jpg"])
@pytest.mark.parametrize("container", ["file", "tar", "parquet", "cifar"])
def test_an_index_that_points_out_of_its_root_reads_nothing(path: str, container: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "root" / "a").mkdir(parents=True)
    example = Example("k", path, (0,), "train", container, offset=0, length=3, row=0)
    with pytest.raises(BadMedia, match=r"^path leaves the root$"):
        load(example, tmp_path / "root")


@pytest.mark.parametrize("length", [2**62, 2**40, 10])
def test_a_length_beyond_the_shard_costs_no_memory(length: int, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 8)
    tracemalloc.start()
    with pytest.raises(BadMedia, match="shorter than its index says"):
        load(Example("k", "a.tar", (0,), "train", "tar", offset=1, length=length), tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


# -------------------------------------------------------------------------------------------- lists, shards


def test_names_that_no_file_can_have_are_problems(tmp_path: Path) -> None:
    long = "x" * 300
    rows = [f"a\0b,{'i' * 11},1,11,train", f"{long},{'j' * 11},1,11,train", f"../..,{'k' * 11},1,11,train"]
    rows.append(f"good,{'m' * 11},1,11,train")
    write(tmp_path, {"train.csv": "label,youtube_id,time_start,time_end,split\n" + "\n".join(rows)})
    write(tmp_path, {"train/good/" + "m" * 11 + "_000001_000011.mp4": "x"})
    result = scan(task("kinetics", 400, "video"), tmp_path)
    assert [example.key for example in result.examples] == ["train/" + "m" * 11 + "_000001_000011"]
    kinds = sorted(problem.kind for problem in result.problems)
    assert kinds == ["broken", "broken", "missing", "missing"]  # the fourth: there is no val.csv


def header(name: bytes, size: bytes, kind: bytes = b"0", extra: bytes = b"") -> bytes:
    """A tar header with any size field."""
    block = bytearray(tarfile.TarInfo(name.decode()).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.ljust(12, b"\0")[:12]
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block) + extra


@pytest.mark.parametrize(
    "first",
    [
        header(b"a.jpg", b"\xff" * 12),  # base 256, negative
        header(b"a.jpg", b"\x80" + b"\x7f" * 11),  # base 256, absurd
        header(b"a.jpg", b"77777777777"),  # 8 GiB
        header(b"a.jpg", b"-0000000777"),
        header(b"a.jpg", b"hello"),
        header(b"a.jpg", b"\x80\0\0\0\x10\0\0\0\0\0\0\0", b"L"),  # a long name of an exabyte
        header(b"a.jpg", b"\x80\0\0\0\x10\0\0\0\0\0\0\0", b"x"),  # the same in a pax header
        header(b"a.jpg", b"00000000020", b"L", b"../../etc/passwd".ljust(512, b"\0")) + header(b"b.jpg", b"0"),
        header(b"a.jpg", b"00000000012", b"x", b"10 size=-1\n".ljust(512, b"\0")) + header(b"b.jpg", b"1"),
        header(b"a.jpg", b"00000000024", b"x", b"20 size=99999999999\n".ljust(512, b"\0")) + header(b"b", b"1"),
        header(b"a.jpg", b"00000001000", b"S", bytes(512)),  # sparse
    ],
)  # fmt: skip
def test_forged_tar_headers_give_no_example(first: bytes, tmp_path: Path) -> None:
    good = tmp_path / "train-1.tar"
    with tarfile.open(good, "w") as tar:
        for name, content in (("g.jpg", b"x"), ("g.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "train-0.tar").write_bytes(first + bytes(1024))
    tracemalloc.start()
    result = scan(task("webdataset"), tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    assert [example.key for example in result.examples] == ["train-1/g"]
    assert {problem.where.partition("/")[0] for problem in result.problems} == {"train-0.tar"}


def test_links_are_followed_as_documented_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    write(elsewhere, {"1.jpg": "x"})
    (tmp_path / "root" / "train").mkdir(parents=True)
    (tmp_path / "root" / "train" / "a").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tmp_path / "root")
    result = scan(task("imagefolder", options={"validation_fraction": 0.0}), tmp_path / "root")
    assert [example.path for example in result.examples] == ["train/a/1.jpg"]
    assert load(result.examples[0], tmp_path / "root") == b"x"


def test_a_parquet_file_with_hostile_words_is_read_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, told in enumerate((b"{", b"[]", b'{"info": {"features": {"label": {"feature": 3}}}}', b"\xff")):
        table = pa.table({"image": [b"x"], "label": [0]}).replace_schema_metadata({"huggingface": told})
        pq.write_table(table, tmp_path / f"data/train-{number}.parquet")
    result = scan(task("parquet"), tmp_path)
    assert len(result.examples) == 4
    deep = json.dumps({"info": {"features": {"label": {}}}}).replace("{}", '{"feature": ' * 900 + "0" + "}" * 900)
    table = pa.table({"image": [b"x"], "label": [0]}).replace_schema_metadata({"huggingface": deep})
    pq.write_table(table, tmp_path / "data/train-9.parquet")
    assert len(scan(task("parquet"), tmp_path).examples) == 5


def test_names_that_are_no_text_are_problems_of_shards(tmp_path: Path) -> None:
    block = bytearray(header(b"aXb.jpg", b"1"))
    block[1:2] = b"\xe9"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    whole = header(b"g.jpg", b"1") + b"x".ljust(512, b"\0") + header(b"g.cls", b"1") + b"0".ljust(512, b"\0")
    (tmp_path / "train-0.tar").write_bytes(bytes(block) + b"x".ljust(512, b"\0") + whole + bytes(1024))
    result = scan(task("webdataset"), tmp_path)
    assert [example.key for example in result.examples] == ["train-0/g"]
    assert [(problem.where, problem.reason) for problem in result.problems] == [
        ("train-0.tar/'a\\udce9b.jpg'", "its name is not UTF-8")
    ]


def test_texts_in_a_parquet_file_that_are_no_text(tmp_path: Path) -> None:
    """A path beside the bytes, and a column's name: both make pyarrow raise what is not its own exception."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/train-0.parquet"
    table = pa.table({"image": [{"bytes": b"x", "path": "QQQQQQ"}], "label": [0], "ZZZZZZ": [1]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"QQQQQQ", b"\xff" * 6))
    (example,) = scan(task("parquet"), tmp_path).examples
    with pytest.raises(BadMedia, match="Parquet file is damaged"):
        load(example, tmp_path)
    path.write_bytes(whole.replace(b"ZZZZZZ", b"\xff" * 6))
    with pytest.raises(UserError, match="no usable example"):
        scan(task("parquet"), tmp_path)


@pytest.mark.parametrize("label", ["99999999999", "8863084066665136129", "-99999999999", "7" * 5000])
def test_numbers_that_no_class_has_are_problems(label: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        {"data.csv": f"path,label,split\na.jpg,0,train\nb.jpg,{label},train\n", "a.jpg": "x", "b.jpg": "x"},
    )
    result = scan(task("csv"), tmp_path)
    assert [(example.path, example.labels) for example in result.examples] == [("a.jpg", (0,))]
    assert [(problem.where, problem.kind) for problem in result.problems] == [("data.csv:3", "label")]
    write(tmp_path, {"data.csv": "", "vggsound.csv": f"a,1,x,train\nb,{label},x,train\n"})
    write(tmp_path, {"audio/a_000001.wav": "x"})
    assert len(scan(task("vggsound", 309, "audio"), tmp_path).examples) == 1
