"""Ctrl-C and SIGTERM during a fit."""

import signal
import threading
from types import TracebackType
from typing import Any

_DEFAULTS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class Interrupts:
    """Within it SIGTERM is what Ctrl-C is: a KeyboardInterrupt. With `waits` the first signal only sets `came`.

    No step is left half done then. Handlers of the user's own are left alone, and so are all in threads other than the
    main one.
    """

    def __init__(self, *, waits: bool) -> None:
        self.waits, self.came = waits, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in _DEFAULTS if self.waits else (signal.SIGTERM,):
                if signal.getsignal(number) is _DEFAULTS[number]:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if not self.waits or self.came:
            raise KeyboardInterrupt
        self.came = True
