"""What a thief does: extraction and distillation (Eqs. 2, 5, 6 and 7), fine-tuning, pruning, quantisation."""
