"""What the three entry scripts share. Imports go one way: scripts -> utils -> models.

Inside this package a file imports only files above it in this list:
refuse, guard, data, distributed, triggers, features, metrics, batchnorm, losses, ewe, attacks, edit, pvalues, files,
checkpoint, run, analyze, halves, step, fit, report, args, commit, smoothing, sources, steal, answers, verdict, wording,
inference, eef, verify, official, timing, costs, benchmark.
"""
