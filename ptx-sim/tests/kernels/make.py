"""Makes the .ptx files beside this script from its .cu files, with NVRTC 13.0.88.

python3 ptx-sim/tests/kernels/make.py LIB, LIB being the folder of libnvrtc.so.13 (the wheel nvidia-cuda-nvrtc).
The .ptx are committed: the tests need only them.
"""
import ctypes
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
FILES = {"portable": "compute_80", "hopper": "compute_90a"}


def main(lib):
    ctypes.CDLL(f"{lib}/libnvrtc-builtins.so.13.0", mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(f"{lib}/libnvrtc.so.13")
    for name, arch in FILES.items():
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        text = (HERE / f"{name}.cu").read_bytes()
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, f"{name}.cu".encode(), 0, None, None)
        options = [f"--gpu-architecture={arch}".encode(), b"--std=c++17"]
        if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            sys.exit(f"{name}: {log.value.decode()}")
        nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
        ptx = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetPTX(program, ptx)
        (HERE / f"{name}.ptx").write_bytes(ptx.value)


main(sys.argv[1])
