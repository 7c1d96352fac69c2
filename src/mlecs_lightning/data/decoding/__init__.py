"""From files and values to tensors: decoders, shapes, scaling."""
