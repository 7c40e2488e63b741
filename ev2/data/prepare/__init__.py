"""Turns the files that people have into shards in ImageNet's layout, with a manifest.

`archives` and `folders` list the pictures, `job` divides, writes and checks them,
`tasks` hands the work to Apache Beam, `shards` is what a worker does. Sets that fit
into memory go without them, through `whole`.
"""
