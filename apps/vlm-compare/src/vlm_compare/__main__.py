"""`python -m vlm_compare`, where the console script is not on the path."""

from vlm_compare.cli import app

app()
