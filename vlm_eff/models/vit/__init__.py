"""Vision towers: where their blocks are, and the runtime that merges and drops tokens between the parts of a block."""
