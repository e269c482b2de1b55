"""Generators of the regret benchmark's tasks; `make_tasks.py` lists and writes them."""
