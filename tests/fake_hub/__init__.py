"""The tests' own Hub: an HTTP server on this machine that speaks the Hub's protocol to the unmodified client.

`from hub.server import Hub`. Nothing here imports huggingface_hub: the server must have its port before the client reads `HF_ENDPOINT`.
"""
