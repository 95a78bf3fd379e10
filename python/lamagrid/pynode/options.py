"""What a task may say about how its model is built; all else in its parameters is upstream's ``Config``.

Does not: import anything: the web process reads this, and loads no model code.
"""

from __future__ import annotations

# Upstream's constructor options that change what a model gives. `hf_access_token` is not among them: a secret
# belongs into the configuration of a node, never into a task.
TASK_OPTIONS = frozenset(
    [
        "sd_controlnet",
        "sd_controlnet_method",
        "no_half",
        "disable_nsfw",
        "sd_cpu_textencoder",
        "sd_run_local",
        "sd_local_model_path",
        "local_files_only",
        "cpu_offload",
        "enable_xformers",
    ]
)
