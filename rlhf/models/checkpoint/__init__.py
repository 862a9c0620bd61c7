"""A checkpoint folder: whether it is whole, how much its model takes, how it is written and read back.

What can be said of a folder without a model in memory is here; a model of its own kind is a file of the room above.
"""
