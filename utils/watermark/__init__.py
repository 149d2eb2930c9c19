"""The paper's method: trigger set, projected gradient ascent (Algorithm 1), objectives (Eqs. 3 and 4), BatchNorm;
and ours: carriers, and the commitment to triggers."""
