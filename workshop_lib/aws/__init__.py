"""The workshop's stacks on AWS: made, linked, looked at and deleted by `workshop aws`."""

DEFAULT_NAME = "cache-aside-workshop"
"""What the workshop's stack is called unless somebody says otherwise."""
