"""What is served over HTTP: the console, the OpenAI-compatible endpoint."""
