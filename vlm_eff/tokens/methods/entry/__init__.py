"""Between the vision tower and the language model: the hidden states are the projected features."""
