"""A Hugging Face Hub on loopback, for private offline use, demos and tests."""

from gated_plugin.hub.local.access import Access
from gated_plugin.hub.local.messages import Refusal
from gated_plugin.hub.local.server import LocalHub

__all__ = ["Access", "LocalHub", "Refusal"]
