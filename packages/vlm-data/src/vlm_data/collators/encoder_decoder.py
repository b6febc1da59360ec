"""ViT + GPT-2: `<bos> question answer <eos>` in the decoder; the image is seen through cross-attention alone.

GPT-2 has one special token for beginning, end and padding. Labels are therefore made from lengths: masking every
padding id would mask the end token too, and the model would never learn to stop.
"""

from vlm_data.collators.base import ImageInputs
from vlm_data.collators.one_question import OneQuestionCollator


class EncoderDecoderCollator(OneQuestionCollator):
    """Collates for `VisionEncoderDecoderModel`; `input_ids` are the decoder's."""

    def prompt_ids(self, prompt: str | None, image: ImageInputs) -> list[int]:
        ids = self.tokenizer(prompt or "", add_special_tokens=False).input_ids
        return [self.tokenizer.bos_token_id, *ids]

    def answer_ids(self, answer: str, prompt: str | None) -> list[int]:
        text = f" {answer}" if prompt else answer
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
