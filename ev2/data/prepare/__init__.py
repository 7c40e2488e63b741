"""Writes users' own files as shards in ImageNet's layout, with a manifest.

`imagenet` and `image_folder` list the images; `build` divides, writes and checks them
through Apache Beam (`beam`, `shards`). `in_memory` writes sets that fit into memory.
"""
