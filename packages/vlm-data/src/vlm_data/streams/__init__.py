"""Data sets larger than memory, read as streams that resume exactly."""

from vlm_data.streams.loader import Loader
from vlm_data.streams.stream import Stream, stream

__all__ = ["Loader", "Stream", "stream"]
