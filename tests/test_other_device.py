"""What a GPU would refuse: everything runs on a device beside the CPU, which takes no tensor of the other one."""

import json

import forked
import pytest
import torch
from other_device_cases import CASES, run_all

pytestmark = pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="torch has no devices written in Python")


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> dict[str, str]:
    """Tracebacks of the cases that failed."""
    folder = tmp_path_factory.mktemp("device")
    process = forked.CONTEXT.Process(target=run_all, args=(folder,))
    process.start()
    process.join()
    return json.loads((folder / "failed.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_on_another_device(failed, case):
    assert case not in failed, failed[case]
