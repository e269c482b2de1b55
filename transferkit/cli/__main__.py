"""`python -m transferkit.cli`."""

from transferkit.cli import main

if __name__ == "__main__":
    main()
