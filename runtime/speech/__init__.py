"""Speech to text: long sounds in windows, with times."""
