"""``python -m polytok``."""

from polytok.cli import main

if __name__ == "__main__":
    main()
