"""Ctrl-C while the guest runs.

Python calls a signal's handler at the first bytecode that it executes. While the engine is at work that is
the entry of a callback, outside of all that could catch it: an exception there never reaches anybody, and the
callback's work is not done. So the request is only noted, and raised when the engine has returned. A second
one does not wait for that.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Interruptible:
    """A context manager: in it, SIGINT calls ``note`` with the exception to be raised by and by.

    It changes nothing outside the main thread, or where SIGINT does not raise KeyboardInterrupt.
    """

    def __init__(self, note: Callable[[BaseException], None]) -> None:
        self._note = note
        self._noted = False
        self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._noted:
            raise KeyboardInterrupt
        self._noted = True
        self._note(KeyboardInterrupt())

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        if threading.current_thread() is threading.main_thread():
            self._installed = True
            signal.signal(signal.SIGINT, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


__all__ = ["Interruptible"]
