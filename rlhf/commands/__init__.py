"""Commands of `rlhf` with options of their own kind: a file a command, whose options and work stand together."""
