"""Turn a trained run into what other programs load; the command is `vlm-export`."""

from vlm_export.errors import ExportError

__all__ = ["ExportError"]
