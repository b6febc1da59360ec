"""Make questions and answers about images of products; the command is `vlm-questions`."""

from vlm_questions.errors import QuestionsError

__all__ = ["QuestionsError"]
