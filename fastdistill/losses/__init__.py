"""Loss terms over captured tensors, and the objective that sums them."""
