"""Killed anywhere and resumed, a run ends as the run that nobody killed. VLM_TRAIN_KILLS sets the number of trials."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_killed_run_ends_as_if_nobody_had_killed_it(captions, tmp_path):
    driver, trials = Path(__file__).with_name("killing.py"), os.environ.get("VLM_TRAIN_KILLS", "4")
    done = subprocess.run(
        [sys.executable, driver, captions, tmp_path, trials], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": equal") == int(trials)
