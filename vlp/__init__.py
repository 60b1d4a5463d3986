"""Vision-language encoders: pretraining, fine-tuning, evaluation."""

__version__ = "0.1.0"
