"""Messages of the wire protocol and their codec; knows nothing of sockets or models."""
