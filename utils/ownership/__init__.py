"""Ownership: what an owner shows, tests on a suspect's answers, verdict, claim; knows no attacks and no rivals."""
