"""``python -m workflows.cli``."""

from workflows.cli import main

if __name__ == "__main__":
    main()
