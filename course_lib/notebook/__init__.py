"""What any lesson needs in the browser: explorers, tables, pictures, predictions, checkers."""
