"""A signal becomes a request to stop, which the loop looks at between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from cnnlab.multihost import processes, shutdown


@dataclass
class StopRequest:
    """Set by a signal, looked at between steps."""

    signal: int | None = None
    agreed: bool = False

    def seen(self) -> int | None:
        """Return the signal, if one has come.

        Of several processes, all see it at the same call, whichever of them received it.
        """
        if processes.count() == 1:
            return self.signal
        self.agreed = self.agreed or shutdown.stop_wanted(self.signal is not None)
        return (self.signal or signal.SIGTERM) if self.agreed else None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and the first Ctrl-C into a request; a second Ctrl-C interrupts at once.

    Only the main thread gets signals: in another one nothing is requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
