"""What the loop of train_lora.py needs and its reader can skip.

`batches` says which pictures a step sees and draws what is random, `caches` keeps latents and texts, `processes` averages
over processes, `state` is a checkpoint on disk, `monitor` shows a run, and `run` resumes, saves and ends it.
"""
