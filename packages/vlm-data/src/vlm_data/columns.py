"""Which columns of a table, of JSON records or of a data set are a row's image, prompt and references."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlm_data.schema import BadRow, DataError, listed

# The first that is there is taken.
IMAGES = ("image_name", "file_name", "image", "image_id", "image_path", "image_file_name", "images", "file_names")
PROMPTS = ("question", "prompt", "query", "prefix")
ANSWERS = ("answer", "answers", "references", "response", "multiple_choice_answer", "label", "suffix")
CAPTIONS = ("caption", "captions", "references", "text", "sentences")
FIELDS = ("image", "prompt", "references")
# Where tasks are mixed: what a row of the other task than the first row's has its texts in.
QUESTION, ITS_ANSWER, CAPTION = "question", ("answer", "answers"), ("caption", "captions")


def parse(text: str) -> dict[str, str]:
    """`image=photo,prompt=question,references=answers` as a dict. An empty name means that there is no such column."""
    columns = {}
    for part in text.split(","):
        field, separator, name = (piece.strip() for piece in part.partition("="))
        if not separator or field not in FIELDS or field in columns:
            raise DataError(f"columns {text!r}: expected image=…,prompt=…,references=…, each at most once")
        columns[field] = name
    return columns


@dataclass(frozen=True)
class Columns:
    """Names of columns; prompt None: captions; references None: nothing is known about the images or answers yet.

    mixed: whether a row may be of the other task; not where the prompt's column was given.
    """

    image: str
    prompt: str | None
    references: str | None
    mixed: bool = True

    @classmethod
    def choose(cls, names: Iterable[str], given: Mapping[str, str] | None, source: str) -> "Columns":
        """The given columns, and where none is given the usual ones among `names`.

        Raises DataError for a given column that is not there, and if the image's cannot be told.
        """
        names, given = list(names), dict(given or {})
        for field, name in given.items():
            if name and name not in names:
                near = difflib.get_close_matches(name, names)
                hint = f" (nearest: {', '.join(near)})" if near else ""
                raise DataError(f"{source}: no column {name!r} for {field}{hint}; columns found: {listed(names)}")
        image = given.get("image") or _first(IMAGES, names)
        prompt = given["prompt"] or None if "prompt" in given else _first(PROMPTS, names)
        usual = ANSWERS if prompt else CAPTIONS
        references = given["references"] or None if "references" in given else _first(usual, names)
        if image is None:
            raise DataError(f"{source}: columns found: {listed(names)}; none is an image: give columns 'image=NAME'")
        if prompt is None and references is None and "references" not in given:
            raise DataError(
                f"{source}: columns found: {listed(names)}; none is a caption or a question: "
                "give columns 'prompt=NAME,references=NAME'"
            )
        return cls(image, prompt, references, "prompt" not in given)

    def read_of(self, names: Iterable[str]) -> list[str]:
        """Those of a table's columns that rows are made of."""
        wanted = {self.image, self.prompt, self.references, *(CAPTION if self.mixed else ())}
        return [name for name in names if name in wanted]

    def texts(self, record: Mapping[str, Any]) -> tuple[str | None, list[str]]:
        """(prompt, references) of a record, which may be a caption among questions, or a question among captions.

        Raises BadRow if one is empty that must not be.
        """
        if self.prompt is None:
            references = as_texts(record.get(self.references), self.references) if self.references else []
            if references or self.references is None:
                return None, references
            if self.mixed and (question := as_text(record.get(QUESTION), QUESTION)):
                return question, _filled(record, ITS_ANSWER)
            raise BadRow(f"{self.references} is empty")
        prompt = as_text(record.get(self.prompt), self.prompt)
        if prompt:
            return prompt, as_texts(record.get(self.references), self.references) if self.references else []
        # A row of `schema.FEATURES` that is a caption has no prompt, and its texts in `references`.
        names = (*CAPTION, FIELDS[2]) if self.prompt == FIELDS[1] else CAPTION
        if self.mixed and (captions := _filled(record, names)):
            return None, captions
        raise BadRow(f"{self.prompt} is empty")


def as_text(value: Any, name: str) -> str:
    """A cell as text, stripped; nothing is "". Raises BadRow for what is neither text nor a number."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"{name} is no text but {type(value).__name__}")
    return str(value).strip()


def as_texts(value: Any, name: str) -> list[str]:
    """A cell that holds one text or several: a list of texts, or VQAv2's list of {"answer": text}; none is empty."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = [as_text(one.get("answer") if isinstance(one, dict) else one, name) for one in values]
    return [text for text in texts if text]


def _filled(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The texts in the first of these columns that holds any."""
    return next((texts for name in names if (texts := as_texts(record.get(name), name))), [])


def _first(usual: Iterable[str], names: list[str]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in usual if name in by_lower), None)
