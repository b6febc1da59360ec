"""What vlm-train can be asked to do: the options, how they fit together, and files of them."""
