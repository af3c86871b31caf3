"""`python -m flashverify`."""

from flashverify.cli import main

if __name__ == "__main__":
    main()
