"""Rows and labels out of a table, in formats that others read. A format is one module here and one line in `shards.WRITERS`.

run         what to write, whether it is there already, in which order: the only module that others call
plan        what an export is: its plan, its files, its manifest
writer      what a format has to say
shards      every file, one by one or side by side
rows        the rows of a shard, in pieces that fit into memory
webdataset, parquet, hf    one shard each
features    columns as the Hugging Face libraries call them
card        README.md

The table keeps book of its copies: `mtv_core.store.exports`.
"""
