"""What the three entry scripts share. Imports go one way: scripts -> utils -> models.

Inside this package a file imports only files above it in this list:
refuse, data, triggers, metrics, batchnorm, losses, attacks, edit, pvalues, run, analyze, fit, report, args, steal.
"""
