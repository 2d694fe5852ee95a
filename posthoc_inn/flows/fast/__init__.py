"""Hand-written passes of a coupling flow, training and inverse; tests hold them to autograd's values."""
