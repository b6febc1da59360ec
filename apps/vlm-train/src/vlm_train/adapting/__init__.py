"""What is trained: methods, put on the model or on parts of it."""
