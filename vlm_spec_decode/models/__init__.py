"""Real and tiny VLMs behind the `Model` port; knows nothing of networks or robots."""
