"""The tests' own Hub: an HTTP server on this machine that speaks the Hub's protocol to the unmodified client.

`from tests.fake_hub.server import Hub`. No module here imports huggingface_hub, because the server must have its port
before the client reads `HF_ENDPOINT`.
"""
