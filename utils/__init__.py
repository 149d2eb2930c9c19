"""What the entry scripts share, in packages. A package imports only packages below it (`make lint` checks this):

    command_line, verify, benchmark, analyze, report    the doors: flags become settings, commands start
    attacks | rivals | analysis                 what a thief does; other watermarks; finished runs measured
    ownership                                   commitment, tests, verdict, report
    watermark                                   trigger set, ascent, objective, BatchNorm statistics
    data | runs | training | pages              images; run folders and checkpoints; the training loop; HTML
    system | published                          files, processes, devices, refusals; what the paper states
"""
