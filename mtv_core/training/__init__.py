"""Training: rows of a tagged table → batches → one step of every objective, under torchrun."""
