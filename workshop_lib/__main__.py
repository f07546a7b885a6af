"""The `workshop` command, also as `python -m workshop_lib`."""

from workshop_lib.cli import main

if __name__ == "__main__":
    main(prog_name="workshop")
