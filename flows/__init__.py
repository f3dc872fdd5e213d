"""The entry points: Prefect flows and the `mtv` command."""
