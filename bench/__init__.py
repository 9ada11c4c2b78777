"""Benchmarks: `python -m bench`. Time and memory of every loss beside torch's, against what the machine's memory allows."""
