//! Runs the PTX of CUDA kernels on a CPU.
