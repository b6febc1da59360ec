"""A local web page to try trained runs on pictures; the command is `vlm-demo`."""

from vlm_demo.errors import DemoError

__all__ = ["DemoError"]
