"""BLIP-2: `<image> × query tokens, </s>, Question: … Answer:` and the answer.

With a T5 language model the prompt is what its encoder reads and ends with `</s>`, instead of beginning with it.

transformers puts the placeholders before the beginning-of-sequence token and never checks their number: with none, the
image would be ignored without a word. So they are written here, not left to the caller.
"""

from vlm_data.collators.base import Collator, ImageInputs
from vlm_data.schema import DataError


class Blip2Collator(Collator):
    """Collates for `Blip2ForConditionalGeneration` with an OPT or T5 language model."""

    def prompt_ids(self, prompt: str | None, image: ImageInputs) -> list[int]:
        queries = self.processor.num_query_tokens
        if not queries:
            raise DataError(
                "the BLIP-2 processor lacks `num_query_tokens`; set it to the model's config.num_query_tokens"
            )
        placeholder = self.tokenizer.convert_tokens_to_ids(str(self.processor.image_token))
        text = f"Question: {prompt} Answer:" if prompt else ""
        words = self.tokenizer(text, add_special_tokens=False).input_ids
        begin = self.tokenizer.bos_token_id
        sentence = [*words, self.tokenizer.eos_token_id] if begin is None else [begin, *words]
        return [placeholder] * queries + sentence

    def answer_ids(self, answer: str, prompt: str | None) -> list[int]:
        text = f" {answer}" if prompt else answer
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
