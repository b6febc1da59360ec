"""The four families of vision-language models, one file each."""

from vlm_models.families.blip2 import Blip2, Blip2Seq2Seq
from vlm_models.families.chat import Chat
from vlm_models.families.encoder_decoder import EncoderDecoder
from vlm_models.families.git import Git

__all__ = ["Blip2", "Blip2Seq2Seq", "Chat", "EncoderDecoder", "Git"]
