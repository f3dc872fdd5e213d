"""Data sets as the protocols want them, one file each; they give ground truth, never a label of an expert."""
