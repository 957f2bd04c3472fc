"""Training engines: a protocol of a few methods (`base`) and its DeepSpeed implementation (`zero`)."""
