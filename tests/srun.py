"""Stands for `srun -N 2 --ntasks-per-node 1 COMMAND`: starts the command twice here, as Slurm would on two machines."""

from __future__ import annotations

import os
import subprocess
import sys
import time

count, command = int(sys.argv[2]), sys.argv[3:]
said = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": str(count)}
tasks = [subprocess.Popen(command, env={**os.environ, **said, "SLURM_NODEID": str(rank)}) for rank in range(count)]
while None in (codes := [task.poll() for task in tasks]) and not any(codes):
    time.sleep(0.05)
if any(codes):
    time.sleep(1.0)
    for task in tasks:
        task.terminate()
sys.exit(max(abs(task.wait()) for task in tasks))
