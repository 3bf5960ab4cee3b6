"""The drawn world of the embedded experiment: pictures, captions and boxes from a seed."""
