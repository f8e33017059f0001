"""From recipe sections to objects: the only place, besides the commands, that reads a recipe."""
