"""The table: the only place that knows Lance."""

import os

# Lance warns at every DataReplacement that it is not stable yet; it is pinned and held by tests/contract. Read when lance is imported.
os.environ.setdefault("LANCE_LOG", "error")
