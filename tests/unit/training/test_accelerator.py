"""The Accelerator of several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import torch.distributed as dist
from torch import nn
from rlhf.training.accelerator import make_accelerator

accelerator = make_accelerator()
group = dist.distributed_c10d._get_default_group()
patience = group._get_backend(accelerator.device).options._timeout.total_seconds()
found = accelerator.num_processes, patience, accelerator.prepare(nn.Linear(2, 2)).gradient_as_bucket_view
if accelerator.is_main_process:
    print(*found)
dist.destroy_process_group()
"""


def test_processes_wait_long_enough_and_hold_their_gradients_once(tmp_path: Path) -> None:
    """NCCL's own patience is ten minutes: less than the main process tokenizes. DDP's buckets are a second copy of the
    gradients unless these are views of them."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "rlhf.launch", "--num_processes", "2", str(tmp_path / "script.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["2", "10800.0", "True"]
