"""The one Hub of a test process. It has its ports when this module is imported, and answers when a test uses it."""

from tests.fake_hub.server import Hub

HUB = Hub()
