"""Each kernel with each of its launch configurations, at the dtypes and sizes that it is meant for: a file an op."""
