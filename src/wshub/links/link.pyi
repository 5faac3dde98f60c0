import ssl
from typing import Any

class LinkCounters:
    """Counts of bytes and messages, which the links of a hub keep."""

class Receiver:
    """Gets what arrives on a link. Each method here does nothing; a receiver overrides those that it needs.

    The link calls the methods on the thread of the event loop, from the loop and never from within a task or a method
    of the link. A receiver may write to the link, pause and abort it in each of them. It raises nothing.

    - ``data_received(data, length)`` is called with bytes in the order in which the peer sent them. The memory is valid
      until it returns.
    - ``get_buffer(buffer)`` and ``buffer_updated(length)`` replace ``data_received()`` in links that can read into
      memory of the receiver.
    - ``eof_received()``: the peer has ended its side. It is called at most once. The link stays open for output until
      it is aborted.
    - ``drained()``: the bytes that ``notify_when_left()`` named have left.
    - ``connection_lost(error)`` is called exactly once, after the end of the link. No method is called after it.
      ``abort()`` never calls it before it returns. A link that was detached does not call it.
    """

class Link:
    """Carries the bytes of one connection. Each kind of link implements these methods; they are native only.

    The receiver, or its hub, calls them on the thread of the event loop. No method raises. None calls the receiver
    before it returns, so a receiver may call each of them at any time, also from within its own methods. After the end
    of the link every method does nothing. Bytes that are written after ``abort()`` are ignored, or dropped.

    - ``write(frame)`` queues a frame. Frames leave whole, in order, each once. It never waits, and never refuses a
      frame because of how much is queued. It returns -1, and changes nothing, if there is no memory.
    - ``pause()`` stops reading, and ``resume()`` reads again. Bytes that were read before may still arrive.
    - ``abort(after_flush)`` ends the link. At once, it drops what is queued. After the flush, it sends the queue, then
      the end of this side. It ends when the peer has ended its side too, and discards bytes that arrive until then. An
      abort at once may follow one after the flush.
    - ``flush_now()`` sends what can be sent before it returns. Otherwise the queue leaves soon.
    - ``notify_when_left(n)`` has the receiver's ``drained()`` called once: when ``n`` bytes have left, or the queue is
      empty. If ``notifies_drained`` is set, ``drained()`` is also called each time that the queue is empty again after
      the link was blocked.
    - ``poll_progress()`` says whether the peer still acknowledges bytes.
    - ``detach()`` gives up the descriptor, if there is one. It does not call the receiver. ``fileno()`` lends it.

    ``queue`` holds what waits. ``blocked`` is set while the other side takes no more. ``counters`` counts each byte and
    each message once: a message that was accepted is pending, delivered or dropped.
    """

    def get_ssl_object(self) -> ssl.SSLObject | None:
        """Return an SSLObject of the connection, to ask it; None without TLS, and once the link finishes or has ended.

        There is none before the handshake either.
        """
    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return what ``SSLObject.getpeercert()`` does; None where there is no SSLObject."""
