"""Names the files that WarpFace's training begins with: the UNet of Stable Diffusion 1.5, from which both of its
UNets start, and the autoencoder.

Nothing of WarpFace itself has been published. Its motion encoder and its WarpCA are new, and its UNets have no
attention to a text (spec warpface.md, section 5.1).
"""

PUBLISHED = {
    "unet": "unet/diffusion_pytorch_model.safetensors of stable-diffusion-v1-5/stable-diffusion-v1-5 on Hugging Face",
    "vae": "vae/diffusion_pytorch_model.safetensors of stable-diffusion-v1-5/stable-diffusion-v1-5 on Hugging Face",
}
WANTED = f"--base takes {PUBLISHED['unet']}; --vae takes {PUBLISHED['vae']}"
