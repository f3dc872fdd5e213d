"""The subcommands of `mtv`, one file a group."""
