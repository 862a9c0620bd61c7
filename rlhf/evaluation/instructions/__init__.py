"""Whether answers keep to what the context says: an instruction turn after turn, or the date.

Another rule of what obeys is a checker (`checkers.py`); another kind of context is a file here.
"""
