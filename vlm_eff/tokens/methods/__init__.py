"""One method a file: its docstring says what it does, where it comes from and where we differ."""
