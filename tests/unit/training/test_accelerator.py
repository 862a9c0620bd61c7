"""The Accelerator of several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import torch.distributed as dist
from rlhf.training.accelerator import make_accelerator

accelerator = make_accelerator()
group = dist.distributed_c10d._get_default_group()
print(accelerator.num_processes, group._get_backend(accelerator.device).options._timeout.total_seconds(), flush=True)
dist.destroy_process_group()
"""


def test_processes_wait_longer_than_the_main_one_tokenizes(tmp_path: Path) -> None:
    """NCCL's own patience is ten minutes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "rlhf.launch", "--num_processes", "2", str(tmp_path / "script.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["2", "10800.0"] * 2
