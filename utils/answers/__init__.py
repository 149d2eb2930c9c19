"""Answers: a suspect is asked by a file, a program, a server or its weights; knows nothing of triggers and claims."""
