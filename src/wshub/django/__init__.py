"""Django Channels over wshub's brokers.

::

    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "wshub.django.ChannelLayer",
            "CONFIG": {"broker": "redis://localhost"},
        },
    }
"""

from wshub.django.channel_layer import ChannelLayer
from wshub.django.stats import ChannelLayerStats

__all__ = ["ChannelLayer", "ChannelLayerStats"]
