"""The four methods that the paper compares with (Table 2), and AKH, each in a module of its own.

May import utils.ownership and everything below it. One rival does not know another, and none knows utils.attacks or
the benchmark.
"""
