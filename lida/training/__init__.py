"""What the loop of train_lora.py needs and its reader can skip.

`batches` says which pictures a step sees and draws what is random, `caches` keeps latents and texts, `dropout` hides
values from the adapter, `processes` averages over processes and notes signals, `state` is a checkpoint on disk, `monitor`
shows a run, `run` starts, resumes, saves and ends it, and `card` describes the trained adapter.
"""
