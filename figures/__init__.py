"""Commands that make the project's pictures and tables: `python -m figures.<name>`."""
