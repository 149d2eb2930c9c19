"""Measurements of a finished run: free energy (Table 7), upper bounds of margins (Table 5), t-SNE points (Figure 7).

May import utils.ownership and everything below it. Knows nothing of attacks, rivals, the benchmark or figures.
"""
