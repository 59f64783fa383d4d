"""The CUDA context, made by a thread of its own while the process imports torch: a third of a second less to wait."""

import ctypes
import threading


def begin_context() -> None:
    """Begin to make the first device's primary context, which torch will use; without a driver nothing happens."""
    threading.Thread(target=_make_context, name="context", daemon=True).start()


def _make_context() -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    # What fails here, fails again in torch, which says why.
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
