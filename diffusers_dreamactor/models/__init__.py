"""Models: the transformer, the VAE and the motion encoders."""
