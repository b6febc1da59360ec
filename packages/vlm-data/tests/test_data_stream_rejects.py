"""Streams: a sample that cannot be used is set aside by name and does not end the stream; memory stays flat."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlm_data
from vlm_data import DataError
from vlm_data.collators.answers import answer_of
from vlm_data.streams import stream


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def write_tar(path: Path, numbers: range) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            member(tar, f"train/{number}.PNG", png(number))
            member(tar, f"train/{number}.txt", f"row {number}".encode())


def write_parquet(path: Path, numbers: range) -> None:
    table = pa.table({"image": [png(number) for number in numbers], "caption": [f"row {number}" for number in numbers]})
    pq.write_table(table, path, row_group_size=7)


def write_json_lines(path: Path, numbers: range) -> None:
    for number in numbers:
        (path.parent / f"{number}.png").write_bytes(png(number))
    lines = [json.dumps({"image": f"{number}.png", "caption": f"row {number}"}) for number in numbers]
    path.write_text("\n".join(lines))


def numbers(batches) -> list[int]:
    return [int(row["references"][0].removeprefix("row ")) for batch in batches for row in batch]


def read(rows, **options) -> tuple[list[int], list]:
    rejected = []
    return sorted(numbers(rows.loader(4, rejected=rejected, **options))), rejected


def test_bad_samples_of_a_tar_are_named_and_do_not_end_it(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(9):
            member(tar, f"{number}.png", png(number)[: 30 if number == 3 else None])
            if number == 4:
                member(tar, "4.json", b"{")
            elif number == 5:
                member(tar, "5.json", b'["a list"]')
            elif number == 6:
                member(tar, "6.txt", b"\xff")
            elif number != 7:
                member(tar, f"{number}.txt", f"row {number}".encode())
        member(tar, "no-image.txt", b"text")
    found, rejected = read(stream(tmp_path))
    assert found == [0, 1, 2, 8]
    reasons = {record.source.rpartition(":")[2]: record.reason for record in rejected}
    assert sorted(reasons) == ["3", "4", "5", "6", "7", "no-image"]
    assert all(record.source.startswith(f"{tmp_path}/a.tar:") for record in rejected)
    assert "cut off" in reasons["3"] or "damaged" in reasons["3"]
    assert "its .json: not JSON" in reasons["4"] and ".txt is not UTF-8" in reasons["6"]
    assert "is no object but list" in reasons["5"]
    assert "no .txt or .json" in reasons["7"]
    assert "0 images among its files (txt)" in reasons["no-image"]
    with pytest.raises(DataError, match=r"a\.tar:"):
        numbers(stream(tmp_path).loader(4))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tar_that_is_cut_off_gives_what_is_whole(tmp_path, workers):
    write_tar(tmp_path / "a.tar", range(20))
    write_tar(tmp_path / "b.tar", range(20, 30))
    data = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        header = tar.getmember("train/10.PNG").offset
    (tmp_path / "a.tar").write_bytes(data[: header + 520])  # in the middle of the image
    found, rejected = read(stream(tmp_path), workers=workers)
    assert found == [*range(10), *range(20, 30)]
    assert len(rejected) == 1 and "cut off" in rejected[0].reason and "train/10" in rejected[0].reason
    # A header that is overwritten: to tarfile that is the end of the archive.
    (tmp_path / "a.tar").write_bytes(data[:header] + b"x" * 512 + data[header + 512 :])
    found, rejected = read(stream(tmp_path), workers=workers)
    assert found == [*range(10), *range(20, 30)]
    assert [record.source for record in rejected] == [f"{tmp_path}/a.tar at byte {header}"]
    assert "the rest of it cannot be read" in rejected[0].reason


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, b"\0" * 100])
@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_shard_that_is_none_is_rejected_as_a_whole(tmp_path, suffix, content):
    write_json_lines(tmp_path / "a.jsonl", range(5))
    (tmp_path / f"b.{suffix}").write_bytes(content)
    found, rejected = read(stream(tmp_path))
    assert found == list(range(5))
    assert [(record.source, "cannot be read" in record.reason) for record in rejected] == [
        (f"{tmp_path}/b.{suffix}", True)
    ]


def test_bad_lines_are_named_by_their_number(tmp_path):
    secret = tmp_path.parent / f"{tmp_path.name}-secret.png"
    secret.write_bytes(png(0))
    (tmp_path / "0.png").write_bytes(png(0))
    lines = [
        b'\xef\xbb\xbf{"image": "0.png", "caption": "row 0"}',
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"image": "0.png", "caption": ""}',
        b'{"image": "0.png", "caption": {"a": 1}}',
        b'{"image": "0.png"}',
        b'{"caption": "row 0"}',
        b'{"image": "missing.png", "caption": "row 0"}',
        json.dumps({"image": f"../{secret.name}", "caption": "row 0"}).encode(),
        json.dumps({"image": "0\0.png", "caption": "row 0"}).encode(),
        b"[" * 100_000,
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found, rejected = read(stream(tmp_path / "a.jsonl", shuffle=False))
    assert found == [0]
    reasons = {record.source: record.reason for record in rejected}
    assert set(reasons) == {f"{tmp_path}/a.jsonl:{line}" for line in range(3, 14)} and len(rejected) == 11
    assert "image not found: " in reasons[f"{tmp_path}/a.jsonl:10"]
    assert "leaves the image folder" in reasons[f"{tmp_path}/a.jsonl:11"]


def test_a_damaged_row_group_is_rejected_row_by_row(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(30))
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    column = group.column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(data)
    found, rejected = read(stream(tmp_path))
    assert found == [*range(7), *range(14, 30)]
    assert sorted(record.source for record in rejected) == sorted(f"{tmp_path}/a.parquet:{row}" for row in range(7, 14))
    assert all("row group 1 is damaged" in record.reason for record in rejected)


def test_rejected_rows_are_told_once_though_the_stream_is_resumed(tmp_path):
    write_tar(tmp_path / "a.tar", range(40))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for number in range(40, 80):
            member(tar, f"{number}.png", png(number)[:20])
            member(tar, f"{number}.txt", b"bad")
    found, sources, state = [], [], None
    for workers in (0, 2, 0):
        rejected = []
        loader = stream(tmp_path, window=16).loader(2, workers=workers, rejected=rejected)
        if state:
            loader.restore(state)
        found += numbers(
            batch for _, batch in zip(range(7 if workers != 0 or not state else 100), loader, strict=False)
        )
        sources += [record.source for record in rejected]
        state = loader.state()
    assert sorted(found) == list(range(40))
    assert sorted(sources) == [f"{tmp_path}/b.tar:{number}" for number in range(40, 80)]


def test_what_collate_refuses_is_rejected_and_the_others_are_collated(tmp_path):
    write_tar(tmp_path / "a.tar", range(10))

    def collate(rows):
        for row in rows:
            if row["references"] == ["row 4"]:
                raise DataError(f"{row['source']}: too long")
        return [row["references"][0] for row in rows]

    rejected = []
    batches = list(stream(tmp_path, shuffle=False).loader(4, collate, rejected=rejected))
    assert batches == [[f"row {i}" for i in some] for some in ([0, 1, 2, 3], [5, 6, 7], [8, 9])]
    assert [(record.source, record.reason) for record in rejected] == [
        (f"{tmp_path}/a.tar:train/4", f"{tmp_path}/a.tar:train/4: too long")
    ]


def test_columns_are_found_or_named(tmp_path):
    record = {"photo": "0.png", "ask": "which?", "said": [{"answer": "row 0"}], "caption": "x"}
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    rows = stream(tmp_path, columns="image=photo,prompt=ask,references=said")
    ((row,),) = rows.loader(1)
    assert (row["prompt"], row["references"], row["id"]) == ("which?", ["row 0"], "a-1")
    assert row["source"] == f"{tmp_path}/a.jsonl:1"
    assert set(row) == set(vlm_data.FEATURES)


@pytest.mark.parametrize(
    ("shards", "options", "message"),
    [
        ("none*.tar", {}, "no shards"),
        ("folder", {}, "no shards"),
        ([], {}, "no shards are given"),
        ("a.txt", {}, r"a shard ends in \.tar, \.parquet, \.jsonl"),
        ("a.tar.gz", {}, "unpack it first"),
        ("empty.jsonl", {}, "there are no rows"),
        ("empty.jsonl", {"window": 0}, "1 row or more"),
        ("empty.jsonl", {"seed": -1}, "a seed from 0"),
        ("empty.jsonl", {"image_dir": "nowhere"}, "no such image folder"),
    ],
)
def test_refusals_say_what_to_do(tmp_path, monkeypatch, shards, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("a.txt", "a.tar.gz", "empty.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        stream(shards, **options)


MEMORY = """
import sys, resource
from vlm_data.streams import stream
rows = stream(sys.argv[1])
loader = rows.loader(256, collate=len)
count, early = 0, None
for batch in loader:
    count += batch
    if early is None and count > 20_000:
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, early, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows_read(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    line = json.dumps({"image": "0.png", "caption": "x" * 1000}) + "\n"
    with open(tmp_path / "a.jsonl", "w") as file:
        for _ in range(120):
            file.write(line * 1000)  # 120 MB
    result = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    count, early, late = map(int, result.stdout.split())  # kB
    assert count == 120_000
    assert late - early < 10_000


def test_conversations_are_read_from_every_kind_of_shard(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    turns = [{"role": "user", "content": "<image> and <image>?"}, {"role": "assistant", "content": "row 1"}]
    record = {"images": ["0.png", "1.png"], "messages": turns}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "b.parquet")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        for name in ("0.png", "1.png"):
            member(tar, f"7.{name}", png(int(name[0])))
        member(tar, "7.json", json.dumps({"messages": turns}).encode())
    for name in ("a.jsonl", "b.parquet", "c.tar"):
        ((row,),) = stream(tmp_path / name).loader(1)
        assert [turn["text"] for turn in row["turns"]] == ["<image> and <image>?", "row 1"], name
        shown = [vlm_data.decode(image).getpixel((0, 0))[0] for image in row["images"]]
        assert shown == [0, 1] and row["image"] == row["images"][0], name
    assert vlm_data.open(tmp_path / "c.tar")["turns"][0] == row["turns"]


class Told(vlm_data.Collator):
    """A collator that gives the answers drawn."""

    def __init__(self):
        self.answer_choice = "sample"

    def spans(self, row, images, answer):
        raise NotImplementedError

    def __call__(self, rows, images=None, epoch=0):
        return [answer_of(row, "sample", 0, epoch) for row in rows]


def test_answers_are_drawn_by_the_epoch_of_the_stream(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    record = {"image": "0.png", "question": "which?", "answers": [str(number) for number in range(50)]}
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(record)] * 8))
    loader = stream(tmp_path, shuffle=False).loader(4, Told())
    epochs = [[one for batch in loader for one in batch] for _ in range(2)]
    rows = [{"id": f"a-{line}", "references": record["answers"], "source": "x"} for line in range(1, 9)]
    assert epochs == [[answer_of(row, "sample", 0, epoch) for row in rows] for epoch in range(2)]
    assert epochs[0] != epochs[1]


def test_parquet_whose_names_are_damaged_is_rejected(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(5))
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"caption", b"c\xe1ption"))
    found, rejected = read(stream(tmp_path))
    assert found == [] and rejected and all(record.source.startswith(f"{tmp_path}/a.parquet") for record in rejected)
