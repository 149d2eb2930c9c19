"""What the entry scripts share, in packages. A package imports only packages below it (`make lint` checks this):

    command_line, verify, benchmark, analyze    the doors: flags become settings, commands start
    cost                                        the benchmark
    attacks | rivals | analysis                 what a thief does; other watermarks; measurements of finished runs
    ownership                                   commitment, tests, verdict, report
    watermark                                   trigger set, ascent, objective, BatchNorm statistics
    data | runs | training                      images; run folders and checkpoints; the training loop
    system | published                          files, processes, devices, refusals; what the paper states
"""
