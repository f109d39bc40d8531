"""The daemon that owns one DeepSpeed diffusion training, its log and its TensorBoard."""

__version__ = "0.1.0"
