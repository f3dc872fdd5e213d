"""Codecs, colours and hashes of images. `mtv_core.data.images` is the door; nothing else is needed outside."""
