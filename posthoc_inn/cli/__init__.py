"""The command line: one lazily imported module a command; asking for help does not import torch."""
