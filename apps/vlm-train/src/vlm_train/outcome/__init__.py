"""What a run leaves for people: numbers, pictures, pages."""
