"""Scores that compare texts: captions and answers with their references."""

from vlm_eval.anls import anls
from vlm_eval.bert_score import bert_score
from vlm_eval.bleu import bleu
from vlm_eval.cider import DocumentFrequencies, cider, document_frequencies
from vlm_eval.clip_score import clip_score, ref_clip_score
from vlm_eval.compare import Comparison, compare
from vlm_eval.exact_match import exact_match
from vlm_eval.frechet_distance import frechet_distance
from vlm_eval.meteor import meteor
from vlm_eval.relaxed_accuracy import relaxed_accuracy
from vlm_eval.rouge import rouge
from vlm_eval.score import Score
from vlm_eval.vqa_accuracy import vqa_accuracy

__all__ = [
    "Comparison",
    "DocumentFrequencies",
    "Score",
    "anls",
    "bert_score",
    "bleu",
    "cider",
    "clip_score",
    "compare",
    "document_frequencies",
    "exact_match",
    "frechet_distance",
    "meteor",
    "ref_clip_score",
    "relaxed_accuracy",
    "rouge",
    "vqa_accuracy",
]
