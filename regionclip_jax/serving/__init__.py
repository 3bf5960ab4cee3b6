"""A web page for one model, and the server behind it (the extra ``serve``)."""
