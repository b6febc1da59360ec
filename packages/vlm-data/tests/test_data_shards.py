"""Parquet, WebDataset shards, Hugging Face's imagefolder, and data sets of the `datasets` library."""

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlm_data
from vlm_data import DataError


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [png(seed) for seed in range(3)]


def pictures(rows):
    return [image["bytes"] for image in rows["image"]]


# ---- Parquet


def test_parquet_of_bytes_of_structs_and_of_names(tmp_path):
    texts = {"question": ["a?", "b?", "c?"], "answers": [["x", "y"], [], ["z"]], "unread": [1, 2, 3]}
    pq.write_table(pa.table({"image": PICTURES, **texts}), tmp_path / "bytes.parquet")
    structs = [{"bytes": picture, "path": f"{n}.png"} for n, picture in enumerate(PICTURES)]
    pq.write_table(pa.table({"image": structs, **texts}), tmp_path / "structs.parquet", row_group_size=1)
    for name in ("bytes", "structs"):
        rows = vlm_data.open(tmp_path / f"{name}.parquet")
        assert pictures(rows) == PICTURES and rows["prompt"][:] == texts["question"]
        assert rows["references"][:] == texts["answers"] and rows["source"][2] == f"{tmp_path}/{name}.parquet: row 2"
    (tmp_path / "0.png").write_bytes(PICTURES[0])
    pq.write_table(pa.table({"file": ["0.png", "../0.png"], "text": ["x", "y"]}), tmp_path / "names.parquet")
    rejected = []
    rows = vlm_data.open(tmp_path / "names.parquet", columns={"image": "file"}, rejected=rejected)
    assert rows["image"][0]["path"] == str(tmp_path / "0.png") and rows["references"][:] == [["x"]]
    assert "leaves the image folder" in rejected[0].reason


def test_parquet_as_the_datasets_library_writes_it_in_shards_by_split(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    data = {"image": [{"bytes": picture, "path": None} for picture in PICTURES], "caption": ["a", "b", "c"]}
    whole = datasets.Dataset.from_dict(data, features=features)
    for number in range(2):
        whole.shard(2, number).to_parquet(tmp_path / f"train-{number:05}-of-00002.parquet")
    whole.select([0]).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    rows = vlm_data.open(tmp_path)
    assert pictures(rows) == PICTURES and rows["references"][:] == [["a"], ["b"], ["c"]]
    assert len(set(rows["id"])) == 3
    assert pictures(vlm_data.open(tmp_path, split="test")) == PICTURES[:1]
    assert vlm_data.open(tmp_path / "test-00000-of-00001.parquet")["references"][:] == [["a"]]


def test_damaged_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 no, not really PAR1")
    with pytest.raises(DataError, match=r"x.parquet: not readable as Parquet \("):
        vlm_data.open(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match="columns found: a; none is an image"):
        vlm_data.open(path)


# ---- WebDataset


def shard(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_webdataset_samples_by_key(tmp_path):
    answer = json.dumps({"question": "what?", "answer": "dog", "width": 8}).encode()
    path = shard(
        tmp_path / "000.tar",
        ("a/1.png", PICTURES[0]),
        ("a/1.txt", b" a dog\n"),
        ("a/2.seg.png", PICTURES[1]),  # the key ends at the first dot
        ("a/2.json", answer),
        ("b/2.JPG", PICTURES[2]),
        ("b/2.cls", b"3"),
        ("b/2.json", b'{"caption": "a cat"}'),
        ("__index.json", b"{}"),
    )
    rows = vlm_data.open(path)
    assert pictures(rows) == PICTURES and rows["references"][:] == [["a dog"], ["dog"], ["a cat"]]
    assert rows["prompt"][:] == [None, "what?", None]
    assert rows["source"][:] == [f"{path}:{key}" for key in ("a/1", "a/2", "b/2")]


def test_webdataset_shards_in_a_folder(tmp_path):
    for number in (1, 0):
        shard(tmp_path / f"{number}.tar", ("x.png", PICTURES[number]), ("x.txt", b"words"))
    rows = vlm_data.open(tmp_path)
    assert pictures(rows) == PICTURES[:2] and rows["id"][:] == ["0-x", "1-x"]


def test_webdataset_samples_that_are_rejected(tmp_path):
    path = shard(
        tmp_path / "x.tar",
        *[("good.png", PICTURES[0]), ("good.txt", b"words")],
        *[("bare.png", PICTURES[0])],
        *[("blind.txt", b"words")],
        *[("two.a.png", PICTURES[0]), ("two.b.png", PICTURES[0]), ("two.txt", b"words")],
        *[("twice.png", PICTURES[0]), ("twice.png", PICTURES[1]), ("twice.txt", b"words")],
        *[("empty.png", PICTURES[0]), ("empty.txt", b" ")],
        *[("latin.png", PICTURES[0]), ("latin.txt", b"caf\xe9")],
        *[("json.png", PICTURES[0]), ("json.json", b"{")],
        *[("list.png", PICTURES[0]), ("list.json", b"[]")],
        *[("none.png", PICTURES[0]), ("none.json", b'{"width": 3}')],
        *[("talk.png", PICTURES[0]), ("talk.json", b'{"messages": []}')],
    )
    rejected = []
    assert vlm_data.open(path, rejected=rejected)["id"][:] == ["x-good"]
    reasons = {record.source.removeprefix(f"{path}:"): record.reason for record in rejected}
    expected = {
        "bare": "no .txt or .json among its files (png)",
        "blind": "0 images among its files (txt)",
        "two": "2 images among its files (a.png, b.png, txt)",
        "twice": "twice.png is there twice",
        "empty": "caption is empty",
        "latin": ".txt is not UTF-8",
        "json": "not JSON",
        "list": "its .json is no object but list",
        "none": "none is a caption or a question",
        "talk": "the conversation is empty",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[key] in reasons[key] for key in expected)


def test_a_damaged_shard_is_read_up_to_the_damage(tmp_path):
    members = [
        (f"{n}.{kind}", content) for n in range(4) for kind, content in (("png", PICTURES[0]), ("txt", b"words"))
    ]
    whole = shard(tmp_path / "whole.tar", *members).read_bytes()
    size = 512 + 512  # of a text's header and block
    picture = 512 + -(-len(PICTURES[0]) // 512) * 512
    third = 2 * (size + picture)
    for name, damaged in {
        "cut.tar": whole[: third + 600],
        "header.tar": whole[:third] + b"x" * 512 + whole[third + 512 :],
    }.items():
        (tmp_path / name).write_bytes(damaged)
        rejected = []
        rows = vlm_data.open(tmp_path / name, rejected=rejected)
        assert len(rows) >= 1 and set(rows["id"]) <= {f"{name[:-4]}-{n}" for n in (0, 1)}
        assert rejected[-1].source.startswith(f"{tmp_path}/{name}")
        assert "damaged here" in rejected[-1].reason
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(DataError, match="junk.tar: not readable as tar"):
        vlm_data.open(tmp_path / "junk.tar")


@pytest.mark.parametrize("first", ["talk", "text"])
def test_a_conversation_among_other_samples_is_rejected_and_the_reverse(tmp_path, first):
    turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "dog"}]
    members = {
        "talk": [("talk.png", PICTURES[0]), ("talk.json", json.dumps({"messages": turns}).encode())],
        "text": [("text.png", PICTURES[1]), ("text.txt", b"words")],
    }
    path = shard(tmp_path / "x.tar", *members.pop(first), *members.popitem()[1])
    rejected = []
    rows = vlm_data.verify(vlm_data.open(path, rejected=rejected), rejected)
    assert rows["id"][:] == [f"x-{first}"] and ("turns" in rows.column_names) == (first == "talk")
    assert len(rejected) == 1 and "conversation" in rejected[0].reason


def test_links_in_a_shard_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("a.png")
            link.type, link.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(link)
        info = tarfile.TarInfo("a.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"words"))
    with pytest.raises(DataError, match=r"0 images among its files \(txt\)"):
        vlm_data.open(path)


# ---- imagefolder


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_imagefolder_equals_what_the_datasets_library_loads(tmp_path, kind, monkeypatch):
    folder = tmp_path / "data"
    for number, picture in enumerate(PICTURES):
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        (folder / "deep" / f"{number}.png").write_bytes(picture)
    table = {"file_name": [f"deep/{n}.png" for n in (2, 0, 1)], "text": ["two", 'nu"ll, x', "one"]}
    writer = {"csv": "to_csv", "jsonl": "to_json", "parquet": "to_parquet"}[kind]
    getattr(datasets.Dataset.from_dict(table), writer)(folder / f"metadata.{kind}")
    rows = vlm_data.open(folder)
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    ours = {vlm_data.decode(row["image"]).tobytes(): row["references"] for row in rows}
    assert ours == {row["image"].convert("RGB").tobytes(): [row["text"]] for row in theirs}
    (folder / "extra.png").write_bytes(PICTURES[0])
    rejected = []
    assert len(vlm_data.open(folder, rejected=rejected)) == 3
    assert [record.source for record in rejected] == [f"{folder}/extra.png"]


# ---- datasets


@pytest.fixture
def saved():
    features = datasets.Features(
        {"img": datasets.Image(), "q": datasets.Value("string"), "kind": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = {"img": [{"bytes": picture, "path": "x"} for picture in PICTURES], "q": ["a?", "b?", ""], "kind": [1, 0, 1]}
    return datasets.Dataset.from_dict(data, features=features)


def test_a_data_set_on_disk_with_columns_and_splits(tmp_path, saved):
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(tmp_path / "two")
    columns = "image=img,prompt=q,references=kind"
    rejected = []
    rows = vlm_data.open(tmp_path / "one", columns=columns, rejected=rejected)
    assert pictures(rows) == PICTURES[:2] and rows["references"][:] == [["yes"], ["no"]]
    assert (rejected[0].source, rejected[0].reason) == (f"{tmp_path}/one: row 2", "q is empty")
    assert vlm_data.splits(tmp_path / "two") == ["train", "test"]
    assert len(vlm_data.open(tmp_path / "two", columns=columns, rejected=[])) == 2
    assert vlm_data.open(tmp_path / "two", columns=columns, split="test")["prompt"][:] == ["b?"]
    with pytest.raises(DataError, match="columns found: img, q, kind; none is an image"):
        vlm_data.open(tmp_path / "one")


def test_a_data_set_of_the_hub(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or saved)
    columns = {"image": "img", "prompt": "q", "references": "kind"}
    rows = vlm_data.open("owner/name", format="datasets", columns=columns, split="validation", rejected=[])
    assert asked == [("owner/name", "validation")]
    assert pictures(rows) == PICTURES[:2] and rows["source"][0] == "owner/name: row 0"
    with pytest.raises(DataError, match="format='datasets' for one of the Hugging Face hub"):
        vlm_data.open("owner/name")


def test_a_data_set_that_cannot_be_loaded(tmp_path, monkeypatch):
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded from disk"):
        vlm_data.open(tmp_path)
