"""`python -m graphopt` runs the command `graphopt`."""

from graphopt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
