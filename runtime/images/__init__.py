"""Images, from a file to what a model is fed."""
