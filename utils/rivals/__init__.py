"""The four methods that the paper compares with (Table 2), and AKH, each in a module of its own."""
