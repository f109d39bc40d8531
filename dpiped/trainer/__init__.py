"""The embedded trainer: a small rectified-flow diffusion transformer, on DeepSpeed's pipeline.

Why: the daemon is of use only together with a trainer, and a full one needs a GPU, gigabytes of weights
and a network. This one trains a real model on captioned images within minutes on two CPU cores, takes the
same kind of configuration and prints the same lines as diffusion-pipe's train.py.

It is started by path (`train.py`) by a launcher that may live in another virtual environment, so it needs
only torch, deepspeed, tensorboard, pillow, safetensors, numpy and the standard library, and nothing else
of this package. Nothing outside this folder may import torch.

Known gap: its own small model only; no pretrained ones, no videos.
"""
