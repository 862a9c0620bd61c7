"""Completions from a policy: in this process, or from an OpenAI-compatible server."""
