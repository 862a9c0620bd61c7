"""Pages and tables of single recipes, a file each, from the figures that the recipe wrote.

A new one is a file here; it draws by `rlhf.report.drawing` and reads nothing but the figures it is given.
"""
