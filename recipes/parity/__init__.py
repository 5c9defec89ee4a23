"""Where a model leaves its reference: both run on the same tokens, compared module by module."""
