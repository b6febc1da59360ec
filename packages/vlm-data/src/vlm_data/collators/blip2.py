"""BLIP-2: `<image> × query tokens, </s>, Question: … Answer:` and the answer.

With a T5 language model the prompt is what its encoder reads and ends with `</s>`, instead of beginning with it.

transformers puts the placeholders before the beginning-of-sequence token and never checks their number: with none, the
image would be ignored without a word. So they are written here, not left to the caller.
"""

from vlm_data.collators.base import ImageInputs
from vlm_data.collators.one_question import OneQuestionCollator
from vlm_data.schema import DataError


class Blip2Collator(OneQuestionCollator):
    """Collates for `Blip2ForConditionalGeneration` with an OPT or T5 language model."""

    def image_ids(self, image: ImageInputs) -> list[int]:
        if not self.processor.num_query_tokens:
            raise DataError(
                "the BLIP-2 processor lacks `num_query_tokens`; set it to the model's config.num_query_tokens"
            )
        return [self._placeholder] * self.processor.num_query_tokens

    def prompt_ids(self, prompt: str | None, image: ImageInputs) -> list[int]:
        words = self._words(f"Question: {prompt} Answer:" if prompt else "")
        begin = self.tokenizer.bos_token_id
        sentence = [*words, self.tokenizer.eos_token_id] if begin is None else [begin, *words]
        return [*self.image_ids(image), *sentence]

    def answer_ids(self, answer: str, prompt: str | None) -> list[int]:
        return [*self._words(f" {answer}" if prompt else answer), self.tokenizer.eos_token_id]

    @property
    def _placeholder(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(str(self.processor.image_token))

    def _words(self, text: str) -> list[int]:
        words = self.tokenizer(text, add_special_tokens=False).input_ids
        if self._placeholder in words:  # the model would put an image there
            raise DataError(f"the text {text!r} holds the image placeholder {self.processor.image_token}; remove it")
        return words
