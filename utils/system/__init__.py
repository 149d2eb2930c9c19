"""The machine: files, processes, signals, devices, and how a script refuses bad input."""
