"""A signal becomes a request to stop, which the loop looks at between steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from cnnlab import signals
from cnnlab.cli import Stopped
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
    """Turn SIGTERM, SIGHUP and the first Ctrl-C into a request; a second Ctrl-C interrupts at once.

    Only the main thread gets signals: in another one nothing is requested. One that is ignored (as
    nohup and "&" ask) stays so.
    """
    request = StopRequest(signals.received())
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        signals.give_up_terminal()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {
        number: signal.signal(number, note)
        for number in signals.NUMBERS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(number: int, what: str) -> Stopped:
    """Build the exception of a process that a signal has stopped; `what` follows its name."""
    return Stopped(f"stopped by {signal.Signals(number).name}{what}", signals.status(number))


def pause(seconds: float, command: str) -> None:
    """Wait for what other processes do.

    Raises:
      Stopped: a signal came.
    """
    with stop_signals() as stop:
        time.sleep(seconds)
        number = stop.seen()
    if number is not None:
        raise stopped_by(number, f" while others train; to resume: {command}")
