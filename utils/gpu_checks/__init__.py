"""What a machine with a CUDA GPU shows in minutes: that the GPU path computes what it should, and how fast it is.

May import everything in utils except the doors; its door is utils.check_gpu. No training imports it.
"""
