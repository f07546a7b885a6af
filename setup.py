"""The wheel also carries what a clone has beside the package, below workshop_lib/files."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("cloudformation", "data", "docs", "notebooks")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "images", "my_*", "*-Copy*", "[!01]*.ipynb")


class BuildWithFiles(build_py):
    """The package as setuptools builds it, and the other files."""

    def run(self) -> None:
        """Build; an editable installation has them where they are."""
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib, "workshop_lib", "files")
            shutil.rmtree(place, ignore_errors=True)  # of an earlier build
            for folder in FOLDERS:
                shutil.copytree(folder, place / folder, ignore=LEFT_OUT)
            for name in ("constraints.txt", "SECURITY.md"):
                shutil.copyfile(name, place / name)


setup(cmdclass={"build_py": BuildWithFiles})
