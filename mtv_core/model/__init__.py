"""The vision transformer, the text tower and the heads that objectives put on them."""
