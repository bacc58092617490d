"""`python -m warmline` is the same as `warmline`."""

from warmline.cli.main import main

if __name__ == "__main__":
    main()
