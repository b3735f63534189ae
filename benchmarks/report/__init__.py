"""Results files as tables, pictures and one page."""
