"""Data sets in memory, what models read besides pictures, and the batches that training draws."""
