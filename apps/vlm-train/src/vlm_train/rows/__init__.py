"""What is trained on: rows, their order, their images, and the batches made of them."""
