"""Between the layers of the language model: the question has been read."""
