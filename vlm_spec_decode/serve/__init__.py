"""What the edge computer serves over HTTP: an OpenAI-compatible endpoint, and the console in a browser."""
