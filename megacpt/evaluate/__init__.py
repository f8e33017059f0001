"""What a model knows, measured on text that it does not train on."""
