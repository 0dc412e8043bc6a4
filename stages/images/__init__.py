"""Where images come from, and how they are split into tasks."""
