"""Reading and writing large files: direct I/O, page cache hints, shared blocks and buffers."""
