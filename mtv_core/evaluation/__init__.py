"""What a model can do, measured against ground truth alone: one file a protocol, `datasets/` one file a data set, `suite` runs them."""
