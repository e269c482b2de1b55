"""The parts of the regret benchmark; `bench_regret.py` is its command line and says what it is for."""
