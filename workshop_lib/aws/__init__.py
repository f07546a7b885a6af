"""The workshop's services on AWS: its CloudFormation stacks, and the load function's zip."""
