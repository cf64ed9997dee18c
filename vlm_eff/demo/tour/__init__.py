"""The bundled model asked with and without plugins, as tables in the terminal and one HTML file."""
