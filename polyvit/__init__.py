"""PolyViT: one Vision Transformer, co-trained on images, videos and audio (plain PyTorch, no Ray, no MLflow)."""

__version__ = "0.1.0"
