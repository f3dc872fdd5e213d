"""One script a claim: `python -m benchmarks.NAME [--quick]`. See README.md."""
