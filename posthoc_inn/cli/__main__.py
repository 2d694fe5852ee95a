"""Lets ``python -m posthoc_inn.cli`` do what ``posthoc-inn`` does."""

from posthoc_inn.cli.main import main

if __name__ == "__main__":
    main()
