"""Vision-language models: four families of transformers behind one interface, with tiny trained checkpoints."""

from vlm_models.attention_maps import attention_maps, words_of
from vlm_models.device import DTYPES
from vlm_models.drawing import draw_answer, draw_attention
from vlm_models.errors import ModelError
from vlm_models.features import FeatureCache
from vlm_models.generation import Answer, together
from vlm_models.load import Plan, load, plan, skeleton
from vlm_models.memory import Memory, out_of_memory_known, predict_memory
from vlm_models.parts import from_parts
from vlm_models.quantize import QUANTIZATIONS
from vlm_models.tiny import TINY, tiny_folder
from vlm_models.vlm import VLM, Batch

__all__ = [
    "DTYPES",
    "QUANTIZATIONS",
    "TINY",
    "VLM",
    "Answer",
    "Batch",
    "FeatureCache",
    "Memory",
    "ModelError",
    "Plan",
    "attention_maps",
    "draw_answer",
    "draw_attention",
    "from_parts",
    "load",
    "out_of_memory_known",
    "plan",
    "predict_memory",
    "skeleton",
    "tiny_folder",
    "together",
    "words_of",
]
