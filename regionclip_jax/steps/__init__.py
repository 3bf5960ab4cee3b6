"""What happens on the device in one step, told top to bottom."""
