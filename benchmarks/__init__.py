"""Benchmarks: measure and print ratios; `python -m benchmarks`."""
