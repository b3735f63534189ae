"""How long a step and a decode should take on a GPU, from its data sheet, the kernels that are launched, and a few
stated constants: a prediction, to be written down before it is measured."""
