"""Blocks: the embedded world. A renderer with exact ground truth, captions, tar shards, tiny experts and a benchmark, all offline."""
