"""The one Hub of a test process. It has its ports once this is imported, and answers once a test asks for it."""

from tests.fake_hub.server import Hub

HUB = Hub()
