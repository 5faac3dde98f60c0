"""Sends messages to the connections of hubs from other programs: task queues, views of a web framework, cron jobs.

::

    with Publisher("redis://localhost") as publisher:
        publisher.publish("Your report is ready.", user="ann")

The hubs must have the same broker: ``wshub serve main:app --broker redis://localhost``. For rooms with history, the
publisher must have the same settings: ``Publisher(url, histories={"chat:*": HistoryConfig()})``.
"""

from wshub.publisher.publishers import AsyncPublisher, Publisher

__all__ = ["AsyncPublisher", "Publisher"]
