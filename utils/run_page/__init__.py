"""The page of one run and its attacks: what their folders say, and the models' answers to the triggers.

A page may be shown to others, so it names neither triggers nor the seed they are drawn from unless it is asked to.
May import utils.ownership, utils.published, utils.pages and everything below them. Knows nothing of attacks and rivals.
"""
