"""A page that shows scores, and the rows behind them with their pictures: one file that opens from disk."""

from vlm_eval.report.page import page
from vlm_eval.report.rows import Comparisons, Row, Run

__all__ = ["Comparisons", "Row", "Run", "page"]
