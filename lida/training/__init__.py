"""What the loop of train_lora.py needs and its reader can skip.

`batches` says which pictures a step sees and draws what is random, `caches` keeps latents and texts, `optimizers` has AdamW
and its learning rates, `processes` averages over processes and notes signals, `state` is a checkpoint on disk, `monitor`
shows a run, and `run` starts, resumes, saves and ends it.
"""
