"""How long a plan will take: what its stages have to do, how fast this machine does it, what the ledger says of both.

`rlhf.start.calibrate` measures the speed. Light: no torch.
"""
