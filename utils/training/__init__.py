"""Training: the loop and its step, faster steps, several processes, and accuracy."""
