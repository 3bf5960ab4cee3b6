"""Load records as batches: order, decoding, transforms, buckets, examples and batches."""
