"""Samples before they are a table: columns, sources, images, duplicates."""
