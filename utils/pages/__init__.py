"""The pieces of an HTML page that is one file: markup that escapes, tables, drawn curves, pictures, the page itself.

A page has no script and asks for nothing from anywhere. May import utils.system. Knows nothing of models and runs.
"""
