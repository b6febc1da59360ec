"""GIT: `[CLS] question answer [SEP]`. The image's tokens are added inside the model, before the text."""

from vlm_data.collators.base import ImageInputs
from vlm_data.collators.one_question import OneQuestionCollator


class GitCollator(OneQuestionCollator):
    """Collates for `GitForCausalLM`: a caption follows [CLS] at once, an answer follows the question."""

    def prompt_ids(self, prompt: str | None, image: ImageInputs) -> list[int]:
        ids = self.tokenizer(prompt or "", add_special_tokens=False).input_ids
        return [self.tokenizer.cls_token_id, *ids]

    def answer_ids(self, answer: str, prompt: str | None) -> list[int]:
        return [*self.tokenizer(answer, add_special_tokens=False).input_ids, self.tokenizer.sep_token_id]
