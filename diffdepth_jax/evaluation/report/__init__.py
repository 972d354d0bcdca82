"""Output of an evaluation: results, tables, pages, images and published numbers."""
