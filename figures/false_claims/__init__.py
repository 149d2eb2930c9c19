"""Two experiments on digits: how often T1 (figures.errors) and the rivals' verification (figures.rivals) claim falsely.

May import train and everything in utils. Knows nothing of figures.paper.
"""
