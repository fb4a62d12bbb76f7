"""What `infer` does, step by step."""
