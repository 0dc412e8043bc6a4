"""Code that all stages share: errors, YAML, atomic files, arrays, and the start and end of a stage."""
