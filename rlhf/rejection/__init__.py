"""Rejection sampling: the pool of all versions' scored answers, the choice among them, what more samples would give.

`pool` keeps and rescores answers and `selection` chooses; `figures` says what a round came to, and `temperature`,
`curves` and `diversity` measure what was drawn. Another rule of choosing, or another figure of the drawn answers, is a
file here.
"""
