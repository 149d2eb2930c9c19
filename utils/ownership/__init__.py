"""Ownership: commitment, tests on a suspect's answers, verdict, claim; knows no attacks and no rivals."""
