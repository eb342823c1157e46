"""What SAELens alone makes of an SAE: a script for a process of its own.

    GATED_PLUGIN_AUTOLOAD=0 python plain_saelens.py ACTIVATIONS OUTPUT FOLDER
    GATED_PLUGIN_AUTOLOAD=0 python plain_saelens.py ACTIVATIONS OUTPUT REPO_ID SAE_ID

Reads "activations" [rows, d_in] and writes "features_*" [rows, d_sae] and "reconstructions_*"
[rows, d_in], computed in float32 and in float64. It is run by its path and imports nothing of gated_plugin, for that would register
the plugin; and it fails if anything else has.
"""

import sys
from pathlib import Path

# A script's folder comes first on the path: our siblings must not pass for installed packages.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]


def main(activations: str, output: str, *source: str) -> None:
    import torch
    from sae_lens import SAE
    from safetensors.torch import load_file, save_file

    if len(source) == 1:
        sae = SAE.load_from_disk(source[0], device="cpu", dtype="float32")
    else:
        sae = SAE.from_pretrained(*source, device="cpu")
    home = type(sae).__module__
    if "gated_plugin" in sys.modules or not home.startswith("sae_lens."):
        sys.exit(f"This process is not plain SAELens: the SAE is a {type(sae).__name__} of {home}.")
    sae.turn_off_forward_pass_hook_z_reshaping()
    x, made = load_file(activations)["activations"], {}
    for dtype in (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        with torch.no_grad():
            features = sae.to(dtype).encode(x.to(dtype))
            made[f"features_{kind}"] = features
            made[f"reconstructions_{kind}"] = sae.decode(features)
    save_file(made, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
