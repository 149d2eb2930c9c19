"""Answers: how a suspect is asked about images: through a file, a program, a server, an ONNX file or its weights.

May import utils.data, utils.runs, utils.training and utils.system. Knows nothing of triggers or of who is right.
"""
