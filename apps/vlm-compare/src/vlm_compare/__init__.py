"""Train with several methods under equal conditions, and compare what comes out; the command is `vlm-compare`."""
