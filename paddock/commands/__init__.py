"""One file a command: `USAGE`, `add_arguments(parser)`, `run(options) -> exit code`.

The module's docstring is the command's help. Modules here import only the standard library and
each other at the top, and the rooms inside functions, so that a command loads what it needs.
"""
