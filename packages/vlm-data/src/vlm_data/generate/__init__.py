"""Questions and answers about images of products: from their attributes by templates, or from a model."""

from vlm_data.generate.endpoint import Endpoint, ask_all, from_replies
from vlm_data.generate.journal import Journal
from vlm_data.generate.products import Product, read_products
from vlm_data.generate.questions import Question, report, write_questions, write_report
from vlm_data.generate.templates import KINDS, from_templates

__all__ = [
    "KINDS",
    "Endpoint",
    "Journal",
    "Product",
    "Question",
    "ask_all",
    "from_replies",
    "from_templates",
    "read_products",
    "report",
    "write_questions",
    "write_report",
]
