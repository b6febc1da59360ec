"""Every kind of input becomes rows, in its order."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_data import DataError, ImageError, Rejected
from vlm_infer import InferError
from vlm_infer.rows import Inputs, open_rows

FOUR = ["red", "blue", "green", "yellow"]


def read(**options) -> tuple[list, list[Rejected]]:
    rows, rejected = open_rows(Inputs(**options))
    found = list(rows.read(range(len(rows))))
    assert list(rows.read([len(rows) - 1, 0])) == [found[-1], found[0]]
    return found, rejected


def column(rows: list[dict], name: str) -> list:
    return [row[name] for row in rows]


def test_images_by_name(pictures):
    paths = tuple(pictures / "photos" / f"{number}.png" for number in (2, 0))
    rows, rejected = read(image=paths, question="what is it?")
    assert [row["image"]["path"] for row in rows] == [str(path) for path in paths] and rejected == []
    assert column(rows, "prompt") == ["what is it?"] * 2
    with pytest.raises(ImageError, match="broken.png is not an image"):
        read(image=(pictures / "photos" / "broken.png",))


def test_a_folder_to_the_bottom(pictures, tmp_path):
    rows, _ = read(images=pictures / "photos")
    assert column(rows, "id") == ["0.png", "1.png", "2.png", "broken.png", "deep/3.png"]
    assert column(rows, "prompt") == [None] * 5 and column(rows, "references") == [[]] * 5  # names are no captions
    Image.new("RGB", (4, 4)).save(tmp_path / "_.png")
    assert column(read(images=tmp_path)[0], "id") == ["_.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InferError, match="none: there are no images in it"):
        read(images=tmp_path / "none")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_tables(kind, pictures, tmp_path):
    """With questions and answers, with captions, with images alone; and one question in place of all."""
    records = [{"image": f"{n}.png", "question": f"{n}?", "answer": color} for n, color in enumerate(FOUR[:3])]
    records[1]["answer"] = ""
    places = {"data": _table(tmp_path / f"qa.{kind}", records), "image_dir": pictures / "photos"}
    rows, rejected = read(**places)
    assert column(rows, "prompt") == ["0?", "1?", "2?"] and column(rows, "references") == [["red"], [], ["green"]]
    assert rejected == [] and rows[1]["image"]["path"] == str(pictures / "photos" / "1.png")
    rows, _ = read(**places, question="what?")  # which the table's answers do not answer
    assert column(rows, "prompt") == ["what?"] * 3 and column(rows, "references") == [[]] * 3
    if kind != "csv":  # whose answers stand beside questions only
        rows, _ = read(**places, question="what?", columns="references=answer")
        assert column(rows, "references") == [["red"], [], ["green"]]

    captions = [{"image": f"{n}.png", "caption": color} for n, color in enumerate(FOUR[:3])]
    places["data"] = _table(tmp_path / f"captions.{kind}", captions)
    rows, _ = read(**places)
    assert column(rows, "prompt") == [None] * 3 and column(rows, "references") == [[color] for color in FOUR[:3]]

    bare = [{"image": f"{n}.png", "price": "3"} for n in range(3)]
    places["data"] = _table(tmp_path / f"bare.{kind}", bare)
    rows, _ = read(**places)
    assert column(rows, "prompt") == [None] * 3 and column(rows, "references") == [[]] * 3
    rows, _ = read(**places, question="what?")
    assert column(rows, "prompt") == ["what?"] * 3


def _table(path, records: list[dict]) -> str:
    if path.suffix == ".csv":
        path.write_text("\n".join(",".join(cells) for cells in [records[0], *(record.values() for record in records)]))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        text = json.dumps(records) if path.suffix == ".json" else "\n".join(map(json.dumps, records))
        path.write_text(text)
    return str(path)


def test_an_error_is_that_of_the_data_as_it_is(pictures, tmp_path):
    (tmp_path / "t.csv").write_text("picture,text\n0.png,a\n")
    with pytest.raises(DataError, match="columns found: picture, text"):
        read(data=str(tmp_path / "t.csv"))
    with pytest.raises(DataError, match="no such file"):
        read(data=str(tmp_path / "nowhere.csv"))


def test_rows_of_a_table_that_cannot_be_read_are_told(pictures, tmp_path):
    (tmp_path / "t.csv").write_text("image_name,question\n0.png,what?\nnowhere.png,what?\n1.png,who?\n")
    rows, rejected = read(data=str(tmp_path / "t.csv"), image_dir=pictures / "photos")
    assert column(rows, "prompt") == ["what?", "who?"]
    assert len(rejected) == 1 and rejected[0].source.endswith("t.csv:3") and "nowhere.png" in rejected[0].reason


def test_coco_and_vqa_files(pictures, tmp_path):
    images = [{"id": 7, "file_name": "0.png"}, {"id": 3, "file_name": "1.png"}]
    annotations = [{"image_id": 7, "caption": "a"}, {"image_id": 3, "caption": "b"}, {"image_id": 7, "caption": "c"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    rows, _ = read(data=str(tmp_path / "coco.json"), image_dir=pictures / "photos")
    assert column(rows, "references") == [["a", "c"], ["b"]]
    questions = [{"question_id": 70, "image_id": 0, "question": "why?"}]
    (tmp_path / "vqa.json").write_text(json.dumps({"questions": questions}))
    rows, _ = read(data=str(tmp_path / "vqa.json"), image_dir=pictures / "photos")
    assert column(rows, "prompt") == ["why?"] and rows[0]["image"]["path"].endswith("0.png")


def test_a_question_takes_the_place_of_a_conversation(pictures, tmp_path):
    turns = [{"role": "user", "content": "<image>what is it?"}, {"role": "assistant", "content": "red"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns, "images": ["0.png"]}))
    places = {"data": str(tmp_path / "chat.jsonl"), "image_dir": pictures / "photos"}
    rows, _ = read(**places)
    assert column(rows, "prompt") == ["what is it?"] and column(rows, "references") == [["red"]]
    rows, _ = read(**places, question="why?")
    assert column(rows, "prompt") == ["why?"] and "turns" not in rows[0]


def test_a_table_of_which_no_row_can_be_read(pictures, tmp_path):
    (tmp_path / "t.csv").write_text("image_name,question\nnowhere.png,what?\n")
    with pytest.raises(InferError, match="no rows in it that can be read; the first: .*t.csv:2: image not found"):
        read(data=str(tmp_path / "t.csv"), image_dir=pictures / "photos")


@pytest.mark.parametrize("kind", ["tar", "parquet", "jsonl"])
def test_streams(kind, pictures, tmp_path):
    """In the order of the shards; captions are references, and shards of images alone are captioned."""
    for shard in range(2):
        records = [(f"{shard}{n}", (pictures / "photos" / f"{n}.png").read_bytes(), FOUR[n]) for n in range(3)]
        for name, texts in (("with", True), ("bare", False)):
            _shard(tmp_path / name / f"{shard}.{kind}", records, texts, pictures)
    rows, _ = read(stream=str(tmp_path / "with"))
    assert column(rows, "references") == [["red"], ["blue"], ["green"]] * 2 and column(rows, "prompt") == [None] * 6
    rows, _ = read(stream=str(tmp_path / "with" / f"*.{kind}"), question="what?")
    assert column(rows, "references") == [[]] * 6 and column(rows, "prompt") == ["what?"] * 6
    rows, _ = read(stream=str(tmp_path / "bare"))
    assert len(rows) == 6 and column(rows, "prompt") == [None] * 6


def _shard(path, records, texts: bool, pictures) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for key, image, text in records:
                for name, content in ((f"{key}.png", image), *([(f"{key}.txt", text.encode())] if texts else [])):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    elif path.suffix == ".parquet":
        columns = {"image": [record[1] for record in records], "caption": [record[2] for record in records]}
        pq.write_table(pa.table(columns if texts else {"image": columns["image"]}), path)
    else:
        link = path.parent / "images"
        if not link.exists():
            link.mkdir()
            for n in range(3):
                (link / f"{n}.png").write_bytes((pictures / "photos" / f"{n}.png").read_bytes())
        lines = [{"image": f"images/{n}.png", **({"caption": r[2]} if texts else {})} for n, r in enumerate(records)]
        path.write_text("\n".join(map(json.dumps, lines)))
