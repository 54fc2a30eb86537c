"""Makes the .ptx files beside this script from its .cu files, with NVRTC 13.0.88.

python3 ptx-sim/tests/kernels/make.py LIB, LIB being the folder of libnvrtc.so.13 (the wheel nvidia-cuda-nvrtc).
The .ptx are committed: the tests need only them. A variant is the same source with one -D, a bug planted on purpose.
"""
import ctypes
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
VARIANTS = {
    "portable": ("portable.cu", "compute_80", ["-DWAIT=1"]),
}


def main(lib):
    ctypes.CDLL(f"{lib}/libnvrtc-builtins.so.13.0", mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(f"{lib}/libnvrtc.so.13")
    for name, (source, arch, defines) in VARIANTS.items():
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        text = (HERE / source).read_bytes()
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None)
        options = [o.encode() for o in [f"--gpu-architecture={arch}", "--std=c++17", *defines]]
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if failed:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            sys.exit(f"{name}: {log.value.decode()}")
        nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
        ptx = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetPTX(program, ptx)
        (HERE / f"{name}.ptx").write_bytes(ptx.value)


main(sys.argv[1])
