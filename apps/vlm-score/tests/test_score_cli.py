"""--help must answer at once: nothing heavy may be imported for it."""

import subprocess
import sys

HEAVY = {"torch", "transformers", "datasets", "numpy", "PIL", "vlm_eval", "evaluate"}


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, vlm_score.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "vlm_score.cli" in loaded and not HEAVY & set(loaded)
