"""Parts of bench_peers.py: the contestants, their environments, and what they measured."""
