"""What an evaluation writes: results, tables, pages, pictures and published numbers."""
