"""The base layer: every package may import it; it imports nothing from the rest."""
