"""Codes in the place of pixels: caches, shards and how they are used."""
