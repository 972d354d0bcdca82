"""A page in the browser on which to try checkpoints; `tools/app.py` starts it.

What is computed stands apart from the page: `uploads` reads images within limits, `checkpoints`
keeps models loaded, `predictions` computes depth with its denoising steps and pictures, `patches`
makes the scene that can be turned. `page` alone needs Gradio, the optional extra `app`.
"""
