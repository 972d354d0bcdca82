"""Output of an evaluation: results, tables, pages, pictures and published numbers."""
