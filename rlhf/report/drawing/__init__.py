"""What pages are made of: numbers as text, tables, SVG figures, templates. Knows no recipe and no run.

Another form of figure or cell is a function here, where a page of more than one recipe needs it.
"""
