"""Modules of the regret benchmark; `bench_regret.py` is its command line and documentation."""
