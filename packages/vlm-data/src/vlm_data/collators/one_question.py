"""Families that take one question, or the wish for a caption, and one answer about one image."""

from abc import abstractmethod
from collections.abc import Sequence

from vlm_data.collators.base import Collator, ImageInputs, Row, Span, images_of
from vlm_data.schema import DataError


class OneQuestionCollator(Collator):
    """`prompt answer <end>`; a family says how the two are written."""

    @abstractmethod
    def prompt_ids(self, prompt: str | None, image: ImageInputs) -> list[int]:
        """The tokens before the answer, image placeholders included; `prompt` None asks for a caption."""

    @abstractmethod
    def answer_ids(self, answer: str, prompt: str | None) -> list[int]:
        """The tokens of the answer and the token that ends it."""

    def spans(self, row: Row, images: Sequence[ImageInputs], answer: str | None) -> list[Span]:
        turns = row.get("turns") or []
        roles = [turn["role"] for turn in turns]
        if roles not in ([], ["user", "assistant"]) or len(images_of(row)) != 1:
            system = ", a system message among them," if "system" in roles else ""
            raise DataError(
                f"{row['source']}: this model takes one question and answer about one image, and this is a conversation"
                f" of {len(roles)} turns{system} with {len(images_of(row))} image(s); train a chat model on it"
            )
        asked = Span(self.prompt_ids(row["prompt"], images[0]))
        if answer is None:
            return [asked]
        trained = all(turn["loss"] for turn in turns if turn["role"] == "assistant")
        return [asked, Span(self.answer_ids(answer, row["prompt"]), trained)]
