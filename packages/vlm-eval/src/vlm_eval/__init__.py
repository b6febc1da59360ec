"""Scores that compare texts: captions and answers with their references."""

from vlm_eval.bert_score import bert_score
from vlm_eval.bleu import bleu
from vlm_eval.exact_match import exact_match
from vlm_eval.score import Score
from vlm_eval.vqa_accuracy import vqa_accuracy

__all__ = ["Score", "bert_score", "bleu", "exact_match", "vqa_accuracy"]
