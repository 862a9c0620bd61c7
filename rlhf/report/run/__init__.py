"""The page of a whole run: what is read of its folder, and the panels, tables and samples made of it.

Each part leaves out what the run lacks. A new part is a function here and a line in `build.py` and its template.
"""
