"""Plan, ledger, sample pool and driver of RLHF-V1..Vn."""
