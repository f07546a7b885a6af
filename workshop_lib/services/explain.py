"""The former names of `error_help`."""

from workshop_lib.services.error_help import (
    advice as explain,
    bucket_region,
    cause_of,
    error_code as code_of,
    error_text as sentence,
)

__all__ = ["bucket_region", "cause_of", "code_of", "explain", "sentence"]
