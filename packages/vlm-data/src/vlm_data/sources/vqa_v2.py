"""VQAv2: a file of questions and one of annotations with ten answers to each (Goyal et al., 2017)."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_data import json_file
from vlm_data.columns import as_text, as_texts
from vlm_data.image_folder import ImageFolder
from vlm_data.request import Request
from vlm_data.schema import BadRow, DataError, Rejected
from vlm_data.sources.coco_captions import image_root, key_of


def matches(content: dict) -> bool:
    return "questions" in content


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each question: all answers as references, most often ten; with question_type and answer_type.

    The path is that of the questions; the annotations are in the same file, or beside it under the name that VQAv2
    gives them (see `annotations_path`). Without any, the questions have no references.
    """
    path = asked.path
    content = json_file.content(path, _slim)
    if not isinstance(content, dict) or not matches(content):
        raise DataError(f"{path}: needed: the file of questions, an object with questions, as VQAv2 has it")
    questions = json_file.objects(content["questions"], "questions", path)
    answered = _annotations(content, path)
    images = ImageFolder(asked.image_dir or image_root(path))
    subtype = str(content.get("data_subtype", ""))
    for question in questions:
        number = question.get("question_id")
        source = f"{path}: question {number}"
        try:
            row = {
                "id": f"{path.stem}-{number}",
                "image": None,
                "prompt": as_text(question.get("question"), "question"),
                "references": [],
                "source": source,
                "question_type": None,
                "answer_type": None,
            }
            if not row["prompt"]:
                raise BadRow("question is empty")
            if answered is not None:
                row |= _answers(answered.get(key_of(number)))
            row["image"] = {"path": images.find(*_file_names(question, subtype)), "bytes": None}
        except BadRow as error:
            yield Rejected(source, str(error))
        else:
            yield row


def annotations_path(questions: Path) -> Path:
    """v2_OpenEnded_mscoco_val2014_questions.json: v2_mscoco_val2014_annotations.json; x_questions: x_annotations."""
    name = questions.name.replace("OpenEnded_", "").replace("MultipleChoice_", "")
    return questions.with_name(name.replace("questions", "annotations"))


def _annotations(content: dict, path: Path) -> dict | None:
    """Annotations by question id; None if there are none."""
    if "annotations" not in content:
        path, questions = annotations_path(path), path
        if path == questions or not path.is_file():
            return None
        ImageFolder(questions.parent).inside(str(path))
        content = json_file.content(path, _slim)
        if not isinstance(content, dict) or "annotations" not in content:
            raise DataError(f"{path}: it holds no annotations to the questions of {questions.name}")
    found = json_file.objects(content["annotations"], "annotations", path)
    return {key_of(annotation.get("question_id")): annotation for annotation in found}


def _slim(value: dict) -> Any:
    """An answer's text for the object it is in: with ten answers to each question, most of the memory."""
    answer = value.get("answer")
    return sys.intern(answer) if isinstance(answer, str) and "answer_id" in value else value


def _answers(annotation: dict | None) -> dict:
    if annotation is None:
        raise BadRow("no annotation has this question_id")
    answers = as_texts(annotation.get("answers", annotation.get("multiple_choice_answer")), "answers")
    if not answers:
        raise BadRow("answers is empty")
    types = {name: as_text(annotation.get(name), name) or None for name in ("question_type", "answer_type")}
    return {"references": answers, **types}


def _file_names(question: dict, subtype: str) -> list[str]:
    """The names that the image may have: as COCO names it, or by its number alone."""
    if isinstance(question.get("image"), str):
        return [question["image"]]
    number = key_of(question.get("image_id"))
    if number is None:
        raise BadRow("there is no image_id")
    if isinstance(number, str):
        return [number, f"{number}.jpg", f"{number}.png"]
    return [f"COCO_{subtype}_{number:012d}.jpg", f"{number:012d}.jpg", f"{number}.jpg", f"{number}.png"]
