"""The OpenAI-compatible endpoint over the engine (docs/serve.md)."""
