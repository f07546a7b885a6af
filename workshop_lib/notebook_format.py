"""nbformat, without the second that one of its helpers' helpers takes to import.

jsonschema looks for `rfc3987_syntax` to check internationalised addresses, of which notebooks have
none; that package builds a parser for a large grammar when it is imported. Import this before
anything else that imports nbformat: nbconvert, papermill.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # import: not found

import nbformat  # noqa: E402

__all__ = ["nbformat"]
