"""`python -m tbkd_utils` is the `tbkd` command."""

from tbkd_utils.cli import main

if __name__ == "__main__":
    main()
