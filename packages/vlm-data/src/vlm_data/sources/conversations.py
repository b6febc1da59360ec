"""Conversations about images: LLaVA and ShareGPT ("conversations", from and value), OpenAI ("messages", role, content).

`<image>` in a text, or a content part of type image, marks where an image is shown. Of a conversation about one image
the tag is left out: where the one image stands is the model family's to say.
"""

from collections.abc import Iterator
from typing import Any

from vlm_data import json_file
from vlm_data.columns import as_text
from vlm_data.image_folder import ImageFolder
from vlm_data.records import image_of
from vlm_data.request import Request
from vlm_data.schema import BadRow, Rejected

FIELDS = ("conversations", "messages")
TAG = "<image>"
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def matches(record: Any) -> bool:
    return isinstance(record, dict) and any(name in record for name in FIELDS)


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each conversation, with all its `images` and `turns`; its first question and answer are the row's."""
    images = ImageFolder(asked.image_dir or asked.path.parent)
    for number, (source, record) in enumerate(json_file.records(asked.path)):
        if isinstance(record, Rejected):
            yield record
            continue
        try:
            yield row_of(record, f"{asked.path.stem}-{number}", source, images)
        except BadRow as error:
            yield Rejected(source, str(error))


def row_of(record: Any, id: str, source: str, images: ImageFolder) -> dict:
    """The row of a conversation. Raises BadRow."""
    if not matches(record):
        raise BadRow(f"none of {', '.join(FIELDS)} is there")
    messages = next(record[name] for name in FIELDS if name in record)
    if not isinstance(messages, list) or not messages:
        raise BadRow("the conversation is empty")
    named = record.get("images", record.get("image"))
    shown = [] if named is None else list(named) if isinstance(named, list) else [named]
    turns, inline = [], []
    for message in messages:
        turn, pictures = _turn(message)
        turns.append(turn)
        inline += pictures
    shown = shown or inline
    marks = sum(turn["text"].count(TAG) for turn in turns)
    if any(TAG in turn["text"] for turn in turns if turn["role"] != "user"):
        raise BadRow(f"{TAG} outside a question")
    if not shown:
        raise BadRow("there is no image")
    if marks not in (len(shown), 0) or (marks == 0 and len(shown) > 1):
        raise BadRow(f"{marks} {TAG} tags for {len(shown)} images")
    roles = [turn["role"] for turn in turns if turn["role"] != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise BadRow(f"the turns are {', '.join(roles)}; needed: user and assistant in turn")
    if len(shown) == 1:
        turns = [{**turn, "text": turn["text"].replace(TAG, "").strip()} for turn in turns]
    question, answer = (next(turn["text"] for turn in turns if turn["role"] == role) for role in ("user", "assistant"))
    if not all(turn["text"] for turn in turns):
        raise BadRow("a turn is empty")
    found = [image_of(image, images) for image in shown]
    texts = {"prompt": question, "references": [answer], "turns": turns}
    return {"id": id, "source": source, "image": found[0], "images": found, **texts}


def _turn(message: Any) -> tuple[dict, list]:
    """A turn, its text with a tag for each image part, and those images."""
    if not isinstance(message, dict):
        raise BadRow(f"a turn is no object but {type(message).__name__}")
    role = _ROLES.get(str(message.get("role", message.get("from"))).lower())
    if role is None:
        raise BadRow(f"unknown role {str(message.get('role', message.get('from')))[:40]!r}; known: {', '.join(_ROLES)}")
    content = message.get("content", message.get("value"))
    pictures, texts = [], []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else "text"
        if kind == "text":
            texts.append(as_text(part.get("text") if isinstance(part, dict) else part, "a turn"))
        elif kind in ("image", "image_url"):
            texts.append(TAG)
            picture = part.get("image", part.get("image_url"))
            picture = picture.get("url") if isinstance(picture, dict) and "url" in picture else picture
            pictures += [] if picture is None else [picture]
        else:
            raise BadRow(f"a part of type {str(kind)[:40]!r}; known: text, image, image_url")
    loss = message.get("loss", True)
    if not isinstance(loss, bool):
        raise BadRow("loss is neither true nor false")
    return {"role": role, "text": "\n".join(texts).strip(), "loss": loss and role == "assistant"}, pictures
