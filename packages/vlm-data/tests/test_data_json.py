"""COCO captions, VQAv2, conversations and records in JSON."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vlm_data
from vlm_data import DataError


def put(root, *names, content="not opened here"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root / names[0]


def names(rows):
    return [image["path"].rsplit("/", 1)[1] for image in rows["image"]]


def reasons(rejected):
    return {record.source.rsplit("/", 1)[1]: record.reason for record in rejected}


# ---- COCO captions

COCO = {
    "info": {},
    "images": [{"id": 9, "file_name": "COCO_train2014_9.jpg"}, {"id": 25, "file_name": "b.jpg", "height": 4}],
    "annotations": [
        {"id": 1, "image_id": 25, "caption": " A giraffe.\n"},
        {"id": 2, "image_id": 9, "caption": "A meal."},
        {"id": 3, "image_id": 25, "caption": "Two giraffes."},
    ],
}


def test_coco_captions_are_grouped_by_image_as_pycocotools_does(tmp_path):
    path = put(tmp_path, "annotations/captions_train2014.json", content=COCO)
    put(tmp_path, "train2014/COCO_train2014_9.jpg", "train2014/b.jpg")
    rows = vlm_data.open(path)
    assert rows["references"][:] == [["A meal."], ["A giraffe.", "Two giraffes."]]
    assert names(rows) == ["COCO_train2014_9.jpg", "b.jpg"] and set(rows["prompt"]) == {None}
    assert rows["source"][1] == f"{path}: image 25" and rows["id"][1] == "captions_train2014-25"
    coco = pytest.importorskip("pycocotools.coco").COCO(str(path))
    for row, number in zip(rows, (9, 25), strict=True):
        captions = [annotation["caption"].strip() for annotation in coco.imgToAnns[number]]
        assert row["references"] == captions and row["image"]["path"].endswith(coco.imgs[number]["file_name"])


def test_coco_rows_that_cannot_be_used(tmp_path):
    images = [*COCO["images"], {"id": 3, "file_name": "gone.jpg"}, {"id": 4}, {"id": 5, "file_name": "b.jpg"}]
    images += [{"id": 6, "file_name": "../b.jpg"}, {"id": [], "file_name": "b.jpg"}]
    annotations = [*COCO["annotations"], *({"image_id": n, "caption": "x"} for n in (3, 4, 6, 77)), {"caption": 5}]
    annotations += [{"image_id": 5, "caption": " "}]
    path = put(tmp_path, "coco.json", content={"images": images, "annotations": annotations})
    put(tmp_path, "COCO_train2014_9.jpg", "b.jpg")
    rejected = []
    assert len(vlm_data.open(path, rejected=rejected)) == 3  # of 9, 25, and the one whose id and caption are odd
    assert {source: reason[:15] for source, reason in reasons(rejected).items()} == {
        "coco.json: image 3": "image not found",
        "coco.json: image 4": "it has no file_",
        "coco.json: image 5": "no caption",
        "coco.json: image 6": f"image '{tmp_path}"[:15],
        "coco.json: image 77": "not among the i",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": [{"image_id": 1, "bbox": []}]}, "its annotations hold no captions"),
        ({"images": 3, "annotations": []}, "images is no list of objects"),
        ({"images": [], "annotations": [3]}, "annotations is no list of objects"),
        ({"images": [], "annotations": []}, "there are no rows in it"),
        ({"licenses": []}, r"an object with licenses; needed: images and annotations \(COCO\), questions"),
        ([], "there are no rows in it"),
        (3, "neither an object nor records but int"),
        ("{", r"not JSON \(Expecting property name"),
        ("[" * 100_000, "JSON nested too deeply"),
    ],
)
def test_json_files_that_are_nothing(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        vlm_data.open(put(tmp_path, "x.json", content=content), rejected=[])
    assert str(error.value).startswith(f"{tmp_path}/x.json")


# ---- VQAv2

TEN = ["yes"] * 7 + ["no"] * 2 + ["maybe"]
QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"question_id": 10, "image_id": 1, "question": "Is it?"},
        {"question_id": 11, "image_id": 2, "question": "How many?"},
    ],
}
ANNOTATIONS = [
    {
        **{"question_id": 10, "image_id": 1, "question_type": "is it", "answer_type": "yes/no"},
        "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(TEN)],
    },
    {"question_id": 11, "image_id": 2, "question_type": "how many", "answer_type": "number", "answers": ["2"] * 10},
]


def test_vqa_v2_keeps_ten_answers_and_both_types(tmp_path):
    path = put(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", content=QUESTIONS)
    put(tmp_path, "v2_mscoco_val2014_annotations.json", content={"annotations": ANNOTATIONS})
    put(tmp_path, "val2014/COCO_val2014_000000000001.jpg", "val2014/000000000002.jpg")
    rows = vlm_data.open(path)
    assert rows["references"][:] == [TEN, ["2"] * 10] and rows["prompt"][:] == ["Is it?", "How many?"]
    assert rows["question_type"][:] == ["is it", "how many"] and rows["answer_type"][:] == ["yes/no", "number"]
    assert names(rows) == ["COCO_val2014_000000000001.jpg", "000000000002.jpg"]
    assert list(rows.features) == [*vlm_data.FEATURES, "question_type", "answer_type"]


def test_vqa_v2_in_one_file_and_without_answers(tmp_path):
    put(tmp_path, "1.jpg", "2.png")
    one = put(tmp_path, "one.json", content={**QUESTIONS, "annotations": ANNOTATIONS[1:]})
    rejected = []
    rows = vlm_data.open(one, rejected=rejected)
    assert names(rows) == ["2.png"]
    assert reasons(rejected) == {"one.json: question 10": "no annotation has this question_id"}
    test = put(tmp_path, "test_questions.json", content=QUESTIONS)
    rows = vlm_data.open(test)
    assert rows["references"][:] == [[], []] and rows["answer_type"][:] == [None, None]


# ---- conversations


def llava(question="<image>\nWhat is it?", answer="A dog.", image="a.jpg", **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": image, "conversations": turns, **more}


def openai(*content):
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "A dog."}]}


TEXT = {"type": "text", "text": "What is it?"}
SAME = [
    llava(),
    llava("What is it?\n<image>"),
    llava("What is it?"),
    llava(image=["a.jpg"]),
    {"images": ["a.jpg"], **openai({"type": "image"}, TEXT)},
    {"images": [{"path": "a.jpg", "bytes": None}], **openai(TEXT, {"type": "image"})},
    openai({"type": "image", "image": "a.jpg"}, TEXT),
    openai(TEXT, {"type": "image_url", "image_url": {"url": "a.jpg"}}),
    openai(TEXT, {"type": "image_url", "image_url": "file://a.jpg"}),
]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "lines.json"])
def test_every_way_to_write_one_exchange(tmp_path, name):
    text = json.dumps(SAME) if name == "x.json" else "\n".join(map(json.dumps, SAME))
    put(tmp_path, "a.jpg")
    rows = vlm_data.open(put(tmp_path, name, content=text))
    assert rows["prompt"][:] == ["What is it?"] * len(SAME) and rows["references"][:] == [["A dog."]] * len(SAME)
    assert set(names(rows)) == {"a.jpg"} and set(rows.features) - set(vlm_data.FEATURES) == {"turns", "images"}
    assert all(len(row["images"]) == 1 and row["turns"][0]["text"] == "What is it?" for row in rows)
    assert rows["source"][1] == f"{tmp_path}/{name}" + ("[1]" if name == "x.json" else ":2")


SYSTEM = {"role": "system", "content": "Be brief."}
LONG = {
    "images": ["a.jpg"],
    "messages": [SYSTEM, *openai(TEXT)["messages"], *openai({**TEXT, "text": "And?"})["messages"]],
}
TWO = {"images": ["a.jpg", "b.jpg"], **openai({"type": "image"}, {"type": "image"}, TEXT)}


def test_several_turns_and_images(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg")
    silent = {"images": ["a.jpg"], **openai(TEXT)}
    silent["messages"] = [silent["messages"][0], {**silent["messages"][1], "loss": False}]
    rows = vlm_data.open(put(tmp_path, "x.json", content=[LONG, TWO, llava(), silent]))
    turns = [[(turn["role"], turn["text"], turn["loss"]) for turn in row["turns"]] for row in rows]
    assert turns[0] == [
        ("system", "Be brief.", False),
        ("user", "What is it?", False),
        ("assistant", "A dog.", True),
        ("user", "And?", False),
        ("assistant", "A dog.", True),
    ]
    assert turns[1][0] == ("user", "<image>\n<image>\nWhat is it?", False)
    assert [[image["path"][-5:] for image in row["images"]] for row in rows][1] == ["a.jpg", "b.jpg"]
    assert [turn[2] for turn in turns[3]] == [False, False]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (llava("<image><image> x"), "2 <image> tags for 1 images"),
        ({**TWO, "images": ["a.jpg"]}, "2 <image> tags for 1 images"),
        (llava(answer="<image>"), "<image> outside a question"),
        (llava(image=None), "there is no image"),
        (llava(image="gone.jpg"), "image not found"),
        (llava(image="../x.jpg"), "leaves the image folder"),
        (llava(image="https://example.org/x.jpg"), "the image is a link"),
        (llava(image=3.5), "the image is no name and no bytes but float"),
        (llava(answer=" "), "a turn is empty"),
        (llava(answer={"x": 1}), "a part of type 'None'; known: text, image, image_url"),
        (llava(answer=True), "a turn is no text but bool"),
        (llava(answer=[{"type": "video"}]), "a part of type 'video'"),
        ({"image": "a.jpg", "conversations": []}, "the conversation is empty"),
        ({"image": "a.jpg", "conversations": ["hi"]}, "a turn is no object but str"),
        ({"image": "a.jpg", "messages": [{"role": "wizard", "content": "x"}]}, "unknown role 'wizard'"),
        ({"image": "a.jpg", "messages": [{"role": "user", "content": "x"}]}, "the turns are user; needed"),
        ({"image": "a.jpg", "text": "x"}, "none of conversations, messages is there"),
        (7, "none of conversations, messages is there"),
        (llava(answer="\ud800"), "not valid Unicode"),
    ],
)
def test_conversations_that_are_rejected(tmp_path, record, reason):
    put(tmp_path, "a.jpg", "b.jpg")
    path = put(tmp_path, "x.json", content=[llava(), record])
    rejected = []
    assert len(vlm_data.open(path, rejected=rejected)) == 1
    assert reason in rejected[0].reason and rejected[0].source == f"{path}[1]"


# ---- records


def test_records_with_the_usual_names_and_with_others(tmp_path):
    put(tmp_path, "a.jpg", "7.png")
    records = [
        {"image": "a.jpg", "question": "what?", "answer": "dog"},
        {"image": 7, "question": "how many?", "answer": 2},
        {"image": "a.jpg", "question": "which?", "answer": ["x", "x", "y"]},
        {"image": "a.jpg", "question": "why?", "answer": None},
    ]
    rows = vlm_data.open(put(tmp_path, "x.json", content=records))
    assert rows["references"][:] == [["dog"], ["2"], ["x", "x", "y"], []] and rows["prompt"][1] == "how many?"
    assert names(rows) == ["a.jpg", "7.png", "a.jpg", "a.jpg"]
    odd = put(tmp_path, "y.jsonl", content='{"photo": "a.jpg", "q": "what?", "label": "dog"}\n\n{"photo": "a.jpg"}\n[')
    rejected = []
    rows = vlm_data.open(odd, columns="image=photo,prompt=q", rejected=rejected)
    assert rows["prompt"][:] == ["what?"] and rows["references"][:] == [["dog"]]
    assert reasons(rejected) == {"y.jsonl:3": "q is empty", "y.jsonl:4": rejected[1].reason}
    assert "not JSON" in rejected[1].reason
    assert vlm_data.open(odd, columns="image=photo,prompt=,references=label", rejected=[])["prompt"][:] == [None]
    with pytest.raises(DataError, match="columns found: photo, q, label; none is an image: give columns 'image=NAME'"):
        vlm_data.open(odd)
    with pytest.raises(DataError, match=r"no column 'foto' for image \(nearest: photo\)"):
        vlm_data.open(odd, columns="image=foto")


MIXED = [
    {"image": "a.jpg", "question": "what?", "answer": "dog", "caption": None},
    {"image": "a.jpg", "question": None, "answer": None, "caption": "a dog"},
    {"image": "a.jpg", "question": "", "answer": "dog", "caption": ""},
]


@pytest.mark.parametrize("first", [0, 1])
def test_captions_and_questions_in_one_file(first, tmp_path):
    put(tmp_path, "a.jpg")
    filled = [{name: value for name, value in record.items() if value} for record in MIXED]
    rejected = []
    for records in (MIXED, filled):  # all names in every record, or only those that say something
        path = put(tmp_path, "x.json", content=[records[first], records[1 - first], records[2]])
        rows = vlm_data.open(path, rejected=rejected)
        wanted = [("what?", ["dog"]), (None, ["a dog"])]
        assert list(zip(rows["prompt"], rows["references"], strict=True)) == [wanted[first], wanted[1 - first]]
    assert [record.source for record in rejected] == [f"{path}[2]"] * 2 and "is empty" in rejected[0].reason
    given = put(tmp_path, "y.json", content=MIXED)
    for columns, prompts in (("prompt=question", ["what?"]), ("prompt=,references=caption", [None])):
        assert vlm_data.open(given, columns=columns, rejected=[])["prompt"][:] == prompts


def test_rows_of_the_schema_come_back_from_json(tmp_path):
    put(tmp_path, "a.jpg")
    records = [
        {"image": "a.jpg", "prompt": prompt, "references": references}
        for prompt, references in (("what?", ["dog"]), (None, ["a dog", "dogs"]), (None, []))
    ]
    rejected = []
    rows = vlm_data.open(put(tmp_path, "x.json", content=records), rejected=rejected)
    assert rows["prompt"][:] == ["what?", None] and rows["references"][:] == [["dog"], ["a dog", "dogs"]]
    assert [record.reason for record in rejected] == ["prompt is empty"]


def test_captions_and_questions_in_tables(tmp_path):
    put(tmp_path, "a.jpg")
    table = "image,question,answer,caption\na.jpg,what?,dog,\na.jpg,,,a dog\na.jpg,,dog,\n"
    pq.write_table(pa.Table.from_pylist(MIXED), tmp_path / "x.parquet")
    datasets.Dataset.from_list(MIXED).save_to_disk(tmp_path / "saved")
    for path, image_dir in ((put(tmp_path, "x.csv", content=table), None), (tmp_path / "x.parquet", None)):
        rejected = []
        rows = vlm_data.open(path, image_dir=image_dir, rejected=rejected)
        assert rows["prompt"][:] == ["what?", None] and rows["references"][:] == [["dog"], ["a dog"]]
        assert [record.reason for record in rejected] == ["question is empty"]
    rows = vlm_data.open(tmp_path / "saved", image_dir=tmp_path, rejected=[])
    assert rows["prompt"][:] == ["what?", None]
