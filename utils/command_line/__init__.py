"""The command lines of train.py, distill.py and extraction.py: flags become settings here, once.

Each package declares the flags of its own settings; this package puts them together and checks what a flag's type
cannot check. From here on frozen settings decide what is computed. The flags themselves are only kept as the record in
`run.json`.

    train      train.py
    attacks    distill.py and extraction.py
    parser     what both ask of argparse, and -tt
"""
