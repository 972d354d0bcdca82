"""What an evaluation leaves: results, tables, pages and pictures, other people's numbers."""
