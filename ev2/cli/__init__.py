"""The `ev2` command: its flags, its help, and a module per group of commands."""
