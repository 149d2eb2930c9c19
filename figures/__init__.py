"""Commands that make the project's pictures and tables: `python -m figures.<name>`.

May import the scripts and everything in utils; nothing imports figures.
"""
