"""The `fathom` command: one file per command group."""
