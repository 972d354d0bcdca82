"""A web page for trying checkpoints; `tools/app.py` starts it.

The logic is separate from the page: `uploads` reads images within limits, `checkpoints` keeps
models loaded, `predictions` computes depth, denoising steps and pictures, `patches` builds the 3-D
scene, and `results` writes files. Only `page` and `actions` need Gradio, the optional extra `app`.
"""
