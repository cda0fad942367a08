"""The parts of dev/gpu_check.sh: comparisons of a GPU with the CPU, and measurements on the GPU."""
