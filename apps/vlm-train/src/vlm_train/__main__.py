"""`python -m vlm_train`, which launchers of several processes take: `accelerate launch -m vlm_train …`."""

from vlm_train.cli import app

app()
