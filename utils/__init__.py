"""What the entry scripts share, in packages. A package imports only packages below it (`make lint` checks this):

    flags, verify, benchmark, analyze, report   the flags of the three scripts, and commands of their own
    attacks | rivals                            what a thief does; other watermarks
    ownership                                   commitment, tests, verdict, report
    watermark                                   trigger set, ascent, objective, BatchNorm statistics
    data | runs | training | pages              images; run folders and checkpoints; the training loop; HTML
    system | published                          files, processes, devices, refusals; what the paper states
"""
