"""A conversation as text pieces and images: written with a chat template, cut where images and answers begin and end.

Labels are right by construction: an answer begins where the text ends that the template writes to ask for it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlm_data.schema import DataError

IMAGE = "<image>"  # in the text of a turn: an image is shown here
CAPTION_PROMPT = "Describe the image."

Message = tuple[str, tuple[str | None, ...], bool]  # role, texts and None for each image, whether it is trained on
Template = Callable[..., str]  # (messages, add_generation_prompt=, tokenize=False), as transformers' processors have it


def messages_of(row: Mapping[str, Any], images: int, answer: str | None) -> tuple[Message, ...]:
    """The messages of a row; without an answer, those before the first one.

    A row without turns is a question about its image, which it begins with. Raises DataError if the turns and their
    tags do not show as many images as there are.
    """
    turns = row.get("turns")
    if not turns:
        asked: Message = ("user", (None, row["prompt"] or CAPTION_PROMPT), False)
        return (asked,) if answer is None else (asked, ("assistant", (answer,), True))
    if answer is None:
        turns = turns[: answered_at(turns)]
    messages = [(turn["role"], _parts(turn["text"]), turn["loss"]) for turn in turns]
    if not any(None in parts for _, parts, _ in messages):  # where the one image stands is ours to say
        first = next(place for place, (role, *_) in enumerate(messages) if role == "user")
        role, parts, trained = messages[first]
        messages[first] = role, (None, *parts), trained
    tags = sum(parts.count(None) for _, parts, _ in messages)
    if tags != images:
        raise DataError(f"{row['source']}: {tags} {IMAGE} tags for {images} images")
    return tuple(messages)


def answered_at(turns: Sequence[Mapping[str, Any]]) -> int:
    """The place of the first answer."""
    return next((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))


def written(messages: Sequence[Message], template: Template, end: re.Pattern) -> list[tuple[str, bool]]:
    """(text, trained) of the pieces that the conversation consists of; what ends an answer belongs to it.

    `end` matches the tokens that may end a turn. What follows a last turn that is trained on is left out. Raises
    DataError for a template that writes a turn differently once it is answered.
    """
    conversation = [{"role": role, "content": [_part(part) for part in parts]} for role, parts, _ in messages]
    ask = conversation[-1]["role"] != "assistant"
    whole = template(conversation, add_generation_prompt=ask, tokenize=False)
    pieces, start = [], 0
    for place, (_, _, trained) in enumerate(messages):
        if not trained:
            continue
        before = template(conversation[:place], add_generation_prompt=True, tokenize=False)
        through = template(conversation[: place + 1], add_generation_prompt=False, tokenize=False)
        if not (through.startswith(before) and whole.startswith(through)):
            raise DataError("the chat template writes a turn differently once it is answered; cannot mask the prompt")
        ends = [match.end() for match in end.finditer(through, len(before))]
        stop = ends[-1] if ends else len(through)
        pieces += [(whole[start : len(before)], False), (whole[len(before) : stop], True)]
        start = stop
    return pieces if messages[-1][2] else [*pieces, (whole[start:], False)]


def _parts(text: str) -> tuple[str | None, ...]:
    parts: list[str | None] = []
    for number, part in enumerate(text.split(IMAGE)):
        parts += [None] * (number > 0) + ([part.strip()] if part.strip() else [])
    return tuple(parts)


def _part(part: str | None) -> dict[str, str]:
    return {"type": "image"} if part is None else {"type": "text", "text": part}
