"""The order of training as a function: which row is number p of a view (design §7)."""
