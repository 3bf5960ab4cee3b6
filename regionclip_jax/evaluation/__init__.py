"""From predictions to the numbers of the field, in numpy on the host."""
